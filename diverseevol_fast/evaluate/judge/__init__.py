"""A judge model compares answers: what it is asked, its replies, the judgements, and the scores of them."""
