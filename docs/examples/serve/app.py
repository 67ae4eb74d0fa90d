"""A small HTTP server that explains uploaded images: `uvicorn app:app`, then POST an image to /explain."""

from __future__ import annotations

import io

from fastapi import FastAPI, HTTPException, Response, UploadFile
from PIL import Image, UnidentifiedImageError

import xaihub
from xaihub.errors import XaihubError

app = FastAPI(title="Explanations")
model = xaihub.load_model()  # once: explanations of one model wait for each other, and give what each gives alone


@app.post("/explain")
def explain(image: UploadFile, explainer: str = "gradcam", target: str | None = None) -> Response:
    """Return the overlay of an uploaded image as PNG; the claim is in the header `X-Claim`."""
    try:
        photo = Image.open(io.BytesIO(image.file.read()))
        found = xaihub.explain(photo, model=model, explainer=explainer, target=target)
    except (XaihubError, UnidentifiedImageError) as error:
        raise HTTPException(422, str(error)) from error
    return Response(found.png(), media_type="image/png", headers={"X-Claim": found.claim})
