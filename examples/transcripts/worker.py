"""Transcribes the sound files of a folder and follows the pitch of the voice.

For `NAME.wav` in the folder of sounds it writes `NAME.json` into the folder of results.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import soundfile
import torch
import torchcrepe
from transformers import pipeline

RATE = 16000
HOP = 320


def read(path: Path) -> torch.Tensor:
    """One channel at 16 kHz."""
    samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    mono = torch.from_numpy(samples.mean(axis=1))[None]
    return torchcrepe.resample(mono, rate) if rate != RATE else mono


def pitch(audio: torch.Tensor) -> dict[str, list[float]]:
    """The pitch in Hz and how sure it is, every 20 ms."""
    np.random.seed(0)  # torchcrepe dithers the pitch; a file gives the same result each time
    hertz, periodicity = torchcrepe.predict(
        audio, RATE, hop_length=HOP, fmin=50, fmax=1000, model="full", batch_size=256, return_periodicity=True
    )
    return {"hertz": hertz[0].tolist(), "periodicity": periodicity[0].tolist()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sounds", type=Path, default=Path("sounds"))
    parser.add_argument("--results", type=Path, default=Path("results"))
    arguments = parser.parse_args()

    recognizer = pipeline("automatic-speech-recognition", model="openai/whisper-tiny")
    arguments.results.mkdir(parents=True, exist_ok=True)
    for path in sorted(arguments.sounds.glob("*.wav")):
        audio = read(path)
        result = {
            "file": path.name,
            "seconds": audio.shape[1] / RATE,
            "text": recognizer({"raw": audio[0].numpy(), "sampling_rate": RATE})["text"],
            "pitch": pitch(audio),
        }
        (arguments.results / f"{path.stem}.json").write_text(json.dumps(result, indent=2))
        print(f"{path.name}: {result['text']!r}", flush=True)


if __name__ == "__main__":
    main()
