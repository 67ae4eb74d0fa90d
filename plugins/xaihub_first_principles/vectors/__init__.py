"""Attribution of models of a vector (tabular data) as measures: `attribute_vector` is the only entry point."""

from xaihub_first_principles.vectors.attribution import VECTOR_FAMILIES, attribute_vector

__all__ = ["VECTOR_FAMILIES", "attribute_vector"]
