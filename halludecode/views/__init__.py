"""How a picture is altered or judged: noise, masks, relevance maps, sink tokens."""
