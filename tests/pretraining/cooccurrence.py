"""Word embeddings from co-occurrence counts, to start pretraining beyond the unigram plateau.

A small masked language model started from random embeddings spends millions of tokens predicting word frequencies.
Started from a truncated SVD of the positive pointwise mutual information (Levy and Goldberg 2014), it leaves that
plateau within its first steps.
"""

from __future__ import annotations

import numpy as np
import scipy.sparse
import scipy.sparse.linalg

__all__ = ["positive_pmi", "svd_embeddings"]

_CHUNK = 2_000_000  # tokens counted at a time: bounds the memory of the pair arrays


def positive_pmi(tokens: np.ndarray, vocab_size: int, window: int, smoothing: float) -> scipy.sparse.csr_matrix:
    """Return the positive PMI matrix, shape (vocab_size, vocab_size).

    `tokens` is one sequence of ids, shape (n,). A pair at distance d counts 1/d, up to `window`; the context
    distribution is raised to `smoothing`.
    """
    counts = scipy.sparse.csr_matrix((vocab_size, vocab_size), dtype=np.float64)
    for start in range(0, len(tokens), _CHUNK):
        part = tokens[start : start + _CHUNK].astype(np.int64)
        for distance in range(1, window + 1):
            left, right = part[:-distance], part[distance:]
            pairs, number = np.unique(left * vocab_size + right, return_counts=True)
            rows, columns = np.divmod(pairs, vocab_size)
            shape = (vocab_size, vocab_size)
            counts += scipy.sparse.csr_matrix((number / distance, (rows, columns)), shape=shape)
    counts = (counts + counts.T).tocoo()
    word = np.asarray(counts.sum(axis=1)).ravel()
    context = word**smoothing
    pmi = np.log(counts.data * context.sum() / (word[counts.row] * context[counts.col]))
    keep = pmi > 0
    return scipy.sparse.csr_matrix((pmi[keep], (counts.row[keep], counts.col[keep])), shape=counts.shape)


def svd_embeddings(matrix: scipy.sparse.csr_matrix, dimension: int, std: float, seed: int) -> np.ndarray:
    """Return embeddings of shape (rows, dimension) with mean 0 and standard deviation `std`.

    Rows that never occurred get small normal noise, so that no two of them are equal. Equal for equal arguments,
    as long as the matrix has at least `dimension` independent rows: beyond its rank the vectors are arbitrary.
    """
    generator = np.random.default_rng(seed)
    start = generator.standard_normal(min(matrix.shape))
    left, singular, _ = scipy.sparse.linalg.svds(matrix, k=dimension, v0=start, rng=generator)
    vectors = left * np.sqrt(singular)
    vectors -= vectors.mean(axis=0)
    unseen = np.diff(matrix.indptr) == 0
    vectors *= std / vectors[~unseen].std()
    vectors[unseen] = generator.normal(0.0, std / 10, (int(unseen.sum()), dimension))
    return vectors.astype(np.float32)
