"""One person's data: found, exported, erased; and stored content encrypted anew."""
