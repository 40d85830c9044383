"""Pictures from text over HTTP."""

import io

import litserve as ls
import torch
from diffusers import DiffusionPipeline
from fastapi import Response
from pydantic import BaseModel, Field


class Prompt(BaseModel):
    prompt: str
    seed: int = 0
    steps: int = Field(default=1, ge=1, le=8)
    width: int = Field(default=512, multiple_of=8, ge=64, le=1024)
    height: int = Field(default=512, multiple_of=8, ge=64, le=1024)


class PicturesAPI(ls.LitAPI):
    def setup(self, device: str) -> None:
        self.pipeline = DiffusionPipeline.from_pretrained("stabilityai/sdxl-turbo").to(device)
        self.pipeline.set_progress_bar_config(disable=True)

    def decode_request(self, request: Prompt) -> Prompt:
        return request

    def predict(self, request: Prompt):
        return self.pipeline(
            request.prompt,
            num_inference_steps=request.steps,
            guidance_scale=0.0,
            width=request.width,
            height=request.height,
            generator=torch.Generator("cpu").manual_seed(request.seed),
        ).images[0]

    def encode_response(self, output) -> Response:
        png = io.BytesIO()
        output.save(png, "PNG")
        return Response(png.getvalue(), media_type="image/png")


if __name__ == "__main__":
    ls.LitServer(PicturesAPI(), accelerator="auto").run(port=8000, generate_client_file=False)
