"""The reference service: captions, Korean and English text, and Florence-2's tasks for images, over HTTP.

It is Prebake's first user, and uses its public interface alone (`prebake` and `prebake.errors`): what it does, any
other service can do.
"""
