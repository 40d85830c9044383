"""What others need to trust baked models: their bill of materials, and a signature of their manifests."""
