"""Image input: finding files, and decoding images to upright RGB within bounded memory."""

from xaihub.images.finding import SUFFIXES, find_images, image_files
from xaihub.images.source import SourceImage, load_image, sample_photo

__all__ = ["SUFFIXES", "SourceImage", "find_images", "image_files", "load_image", "sample_photo"]
