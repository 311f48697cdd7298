"""Text to tokens to batches."""

from gptfit.data.compression import Vocabulary, compressed_bits, vocabularies
from gptfit.data.meta_pickle import read_meta_pkl
from gptfit.data.preparation import prepare
from gptfit.data.sampler import IGNORED, Sampler, consecutive_windows
from gptfit.data.streams import TextStream
from gptfit.data.text import TextSource, TextSummary
from gptfit.data.tokenizer import Tokenizer
from gptfit.data.tokenizer_choice import default_bpe_vocab_size, make_tokenizer
from gptfit.data.tokens import TokenDataset

__all__ = [
    "IGNORED",
    "Sampler",
    "TextSource",
    "TextStream",
    "TextSummary",
    "TokenDataset",
    "Tokenizer",
    "Vocabulary",
    "compressed_bits",
    "consecutive_windows",
    "default_bpe_vocab_size",
    "make_tokenizer",
    "prepare",
    "read_meta_pkl",
    "vocabularies",
]
