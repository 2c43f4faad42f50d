"""Untrusted bytes in, RGB pixels and a sha256 out. The only file that meets Pillow.

A file is taken for what its content says, whatever it is called, and either becomes upright 8-bit RGB pixels without
guessing or is refused with a reason. EXIF, XMP, text chunks and colour profiles stay behind: of all metadata only the
EXIF orientation is used (a corrupt EXIF block counts as none, as in every viewer), and embedded ICC profiles are
ignored, so that the numbers are those stored in the file. The auxiliary pictures that a phone appends to a JPEG (depth,
gain map, preview) are ignored; several pages or frames in any other format are refused.
"""

from .colour import shades_of_gray
from .pixels import encode_image, resize, thumbnail_jpeg, thumbnail_png, write_image
from .read import LesionImage, image_name, image_sha256, read_image, read_images, refusal_message

__all__ = [
    "LesionImage",
    "encode_image",
    "image_name",
    "image_sha256",
    "read_image",
    "read_images",
    "refusal_message",
    "resize",
    "shades_of_gray",
    "thumbnail_jpeg",
    "thumbnail_png",
    "write_image",
]
