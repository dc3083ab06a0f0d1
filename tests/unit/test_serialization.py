from __future__ import annotations

import pytest

from django_epica_mail.serialization import dump, load
from tests import corpus

kinds = pytest.mark.parametrize(
    "make", [make for _, make in corpus.CORPUS], ids=[name for name, _ in corpus.CORPUS]
)


def there_and_back(message):
    stored = dump(message)
    return load(stored.envelope, {blob.digest: blob.content for blob in stored.blobs})


@kinds
def test_a_stored_message_goes_out_byte_for_byte_as_a_direct_one(make):
    sender, recipients, content = corpus.wire(make())
    stored_sender, stored_recipients, stored_content = corpus.wire(there_and_back(make()))
    assert (stored_sender, stored_recipients) == (sender, recipients)
    assert corpus.normalise(stored_content) == corpus.normalise(content)
