"""The environments of the matrix: which ones there are, how each is made, and how a record is made in each."""
