"""How good a selection was: diversity, answers, judgements, scores, and a report of all."""
