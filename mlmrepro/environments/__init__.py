"""The environments of the matrix: which there are, how each is made, and how the record is taken in all of them."""
