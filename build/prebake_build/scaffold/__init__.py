"""The files that `prebake init` writes for a project: what it finds there, the templates, and drift from them."""
