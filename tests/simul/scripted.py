"""A model that says one known sentence about any audio: what tests of streaming faces need to see every word."""

from pathlib import Path

import torch

from espnet_bestow.llm.tokenizer import load_tokenizer

SENTENCE = "heute sieht der kleine hund drei rote vögel im garten"


def write_scripted(experiment: Path, llm: Path, folder: Path, sentence: str = SENTENCE) -> Path:
    """A trained experiment that is deaf and knows nothing but which token follows which.

    Args:
        experiment: a finished training.
        llm: the LLM it began with.
        folder: gets the new experiment.
        sentence: no token may come twice.
    """
    tokenizer = load_tokenizer(str(llm))
    script = tokenizer(sentence, add_special_tokens=False).input_ids
    assert len(set(script)) == len(script), f"{sentence!r} has a token twice: {tokenizer.convert_ids_to_tokens(script)}"
    weights = torch.load(experiment / "valid.loss.best.pth", weights_only=True)
    embed = torch.randn(
        weights["llm.model.model.embed_tokens.weight"].shape, generator=torch.Generator().manual_seed(0)
    )
    head = torch.zeros_like(embed)
    before = [tokenizer.convert_tokens_to_ids("\n"), *script]
    for token, following in zip(before, [*script, tokenizer.eos_token_id], strict=True):
        head[following] = embed[token]
    for name, weight in weights.items():
        if name.endswith(("o_proj.weight", "down_proj.weight", "connector.text_out.weight", "connector.text_out.bias")):
            weight.zero_()
    weights["llm.model.model.embed_tokens.weight"], weights["llm.model.lm_head.weight"] = embed, head
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text((experiment / "config.yaml").read_text())
    torch.save(weights, folder / "latest.pth")
    return folder
