"""Sentence embeddings over HTTP."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request
from pydantic import BaseModel, Field
from sentence_transformers import SentenceTransformer

MODEL = "sentence-transformers/all-MiniLM-L6-v2"


class Texts(BaseModel):
    texts: list[str] = Field(min_length=1, max_length=64)


class Embeddings(BaseModel):
    model: str
    dimensions: int
    embeddings: list[list[float]]


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    app.state.model = SentenceTransformer(MODEL)
    yield


app = FastAPI(title="Embeddings", lifespan=lifespan)


@app.get("/health")
def health() -> dict[str, str]:
    return {"status": "ok"}


@app.post("/embed")
def embed(body: Texts, request: Request) -> Embeddings:
    vectors = request.app.state.model.encode(body.texts, normalize_embeddings=True)
    return Embeddings(model=MODEL, dimensions=vectors.shape[1], embeddings=vectors.tolist())
