"""The checker that jaxtyping's import hook puts on every function of anymask while tests run (see pyproject.toml)."""

from beartype import BeartypeConf, beartype

# As everywhere in Python, an int may stand where a float is asked for.
check = beartype(conf=BeartypeConf(is_pep484_tower=True))
