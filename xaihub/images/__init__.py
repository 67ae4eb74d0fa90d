"""Image input: finding files, and decoding images to upright RGB within bounded memory."""

from xaihub.images.finding import SUFFIXES as SUFFIXES
from xaihub.images.finding import find_images as find_images
from xaihub.images.finding import image_files as image_files
from xaihub.images.finding import walk_images as walk_images
from xaihub.images.source import SourceImage as SourceImage
from xaihub.images.source import load_image as load_image
from xaihub.images.source import sample_photo as sample_photo
