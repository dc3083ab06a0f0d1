"""Login with access tokens, at an SMTP server that asks a token authority about them."""

from __future__ import annotations

import base64
import logging
import smtplib
import threading
from typing import Any

import pytest
from django.core.mail.backends.smtp import EmailBackend

from devservers.authority import CLIENT_ID, CLIENT_SECRET, TENANT
from devservers.smtp import SMTPServer
from devservers.smtp_actions import Reply
from devservers.smtp_faults import refuse
from django_epica_mail.models import DeliveryAttempt, EmailLog
from django_epica_mail.monitoring import doctor
from django_epica_mail.retry import Kind
from django_epica_mail.transports import connection, oauth
from django_epica_mail.transports.oauth import Mailbox, TokenSource

MAILBOX = "shop@example.com"


class SitesOwn(EmailBackend):
    """A site's own backend, which sets a header."""

    def _send(self, email_message: Any) -> bool:
        email_message.extra_headers["X-Site"] = "own"
        return super()._send(email_message)


@pytest.fixture
def form(authority) -> dict[str, Any]:
    return {
        "provider": "generic",
        "token_url": authority.token_url,
        "client_id": CLIENT_ID,
        "client_secret": CLIENT_SECRET,
    }


@pytest.fixture
def log_in(mailbox, use_options, form):
    """Use OAuth for the transport ``smtp``, with changes to its options."""

    def use(backend: str = "django.core.mail.backends.smtp.EmailBackend", **changes: Any) -> None:
        options = {"host": "127.0.0.1", "port": mailbox.port, "username": MAILBOX}
        use_options(backend, **{**options, "oauth": form, **changes})

    use()
    return use


@pytest.mark.parametrize("mechanism", ["XOAUTH2", "OAUTHBEARER"])
def test_a_mail_is_sent_after_a_login_with_a_token(
    log_in, mailbox, queue_mail, deliver, mechanism
) -> None:
    mailbox.mechanisms = (mechanism,)
    queue_mail("to@example.com")
    assert deliver() == 1
    assert [it.recipients for it in mailbox.accepted] == [("to@example.com",)]
    assert mailbox.commands["AUTH"] == 1


def test_a_token_goes_over_tls_to_a_server_that_is_trusted(
    authority, use_options, form, queue_mail, deliver, monkeypatch
) -> None:
    with SMTPServer(accepts_token=authority.accepts, tls=authority.tls) as server:
        use_options(host="127.0.0.1", port=server.port, username=MAILBOX, use_ssl=True, oauth=form)
        failure = connection.probe("smtp")
        assert (failure.kind, "CERTIFICATE_VERIFY_FAILED" in failure.reply) == (Kind.OUTAGE, True)
        assert authority.issued == []
        monkeypatch.setenv("SSL_CERT_FILE", str(authority.certificate))
        queue_mail("to@example.com")
        deliver()
        assert len(server.accepted) == 1
        connection.close_connections()


def test_one_token_serves_many_connections_and_threads(log_in, authority) -> None:
    threads = [threading.Thread(target=connection.probe, args=["smtp"]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert connection.probe("smtp") is None
    assert len(authority.issued) == 1


def test_a_token_is_renewed_before_it_expires(log_in, authority, monkeypatch) -> None:
    assert connection.probe("smtp") is None
    real = oauth.time.monotonic
    monkeypatch.setattr(oauth.time, "monotonic", lambda: real() + 3600 - 299)
    assert connection.probe("smtp") is None
    assert len(authority.issued) == 2


def test_a_token_refused_with_535_is_renewed_once(log_in, authority) -> None:
    assert connection.probe("smtp") is None
    authority.revoke()
    assert connection.probe("smtp") is None
    assert len(authority.issued) == 2


def test_a_new_token_that_is_refused_is_an_outage_and_not_renewed(
    log_in, authority, mailbox, queue_mail, deliver
) -> None:
    mailbox.accepts_token = lambda user, token: False
    mail = queue_mail("to@example.com")
    deliver()
    mail.refresh_from_db()
    assert (mail.status, mail.failure_kind, mail.tries) == ("retrying", Kind.OUTAGE, 0)
    assert "Token refused" in mail.reply
    assert len(authority.issued) == 1
    failure = connection.probe("smtp")  # the token is kept now, and renewed once
    assert (failure.kind, failure.code) == (Kind.OUTAGE, 535)
    assert len(authority.issued) == 2


def test_a_token_that_another_thread_renewed_is_not_renewed_again(form, authority) -> None:
    tokens = source(**form)
    refused = tokens.current(5)
    renewed = tokens.renewed(refused, 5)
    assert tokens.renewed(refused, 5) == renewed
    assert len(authority.issued) == 2


def test_another_refusal_than_535_does_not_renew_the_token(log_in, authority, mailbox) -> None:
    assert connection.probe("smtp") is None
    mailbox.inject(refuse("auth", 454, "4.7.0 Temporary failure"))
    assert connection.probe("smtp").code == 454
    assert len(authority.issued) == 1


def test_a_server_without_the_mechanism_is_named(log_in, mailbox) -> None:
    mailbox.accepts_token, mailbox.credentials = None, {"a": "b"}
    failure = connection.probe("smtp")
    assert failure.kind is Kind.OUTAGE
    assert "does not offer XOAUTH2 or OAUTHBEARER" in failure.reply
    assert "PLAIN LOGIN" in failure.reply


def test_the_mechanism_can_be_chosen(log_in, mailbox, form) -> None:
    log_in(oauth={**form, "mechanism": "OAUTHBEARER"})
    assert connection.probe("smtp") is None
    mailbox.mechanisms = ("XOAUTH2",)
    assert "does not offer OAUTHBEARER," in connection.probe("smtp").reply


def test_a_sites_own_backend_logs_in_too(log_in, mailbox, queue_mail, deliver) -> None:
    log_in(f"{__name__}.SitesOwn")
    queue_mail("to@example.com")
    assert deliver() == 1
    assert b"X-Site: own" in mailbox.accepted[0].content


@pytest.mark.parametrize("options", [{}, {"password": "the-old-password"}])
def test_a_password_beside_oauth_is_never_sent(log_in, mailbox, options) -> None:
    mailbox.credentials = {MAILBOX: "the-old-password"}
    log_in(**options)
    assert connection.probe("smtp") is None
    assert mailbox.commands["AUTH"] == 1  # and it was the token


def test_an_authority_that_is_down_is_an_outage_and_ends_by_itself(
    log_in, authority, mailbox, queue_mail, deliver
) -> None:
    authority.fail(503, error="temporarily_unavailable")
    mail = queue_mail("to@example.com")
    deliver()
    mail.refresh_from_db()
    assert mail.failure_kind == Kind.OUTAGE
    assert "temporarily_unavailable" in mail.reply
    assert connection.probe("smtp") is None


def test_the_doctor_tries_the_login_and_says_what_to_do(log_in, authority, mailbox) -> None:
    assert not [it for it in doctor.examine(open_transports=True) if it.id == "credentials"]
    mailbox.accepts_token = lambda user, token: False
    log_in(
        oauth={
            "provider": "microsoft",
            "authority": authority.url,
            "tenant": TENANT,
            "client_id": CLIENT_ID,
            "client_secret": CLIENT_SECRET,
        }
    )
    (finding,) = [it for it in doctor.examine(open_transports=True) if it.id == "credentials"]
    assert "New-ServicePrincipal" in finding.text
    assert "password" not in finding.remedy
    log_in(
        oauth={
            "provider": "microsoft",
            "authority": authority.url,
            "tenant": TENANT,
            "client_id": CLIENT_ID,
            "client_secret": "expired",
        }
    )
    (finding,) = [it for it in doctor.examine(open_transports=True) if it.id == "credentials"]
    assert "Certificates & secrets" in finding.text


def test_no_secret_is_in_rows_logs_errors_or_reprs(
    log_in, authority, mailbox, form, queue_mail, deliver, caplog
) -> None:
    caplog.set_level(logging.DEBUG)

    def echo(stage: str, session: Any) -> Any:
        """Refuse with the words of the client, as a careless server may."""
        if stage != "auth":
            return None
        token = authority.issued[-1]
        words = base64.b64encode(f"user={MAILBOX}\1auth=Bearer {token}\1\1".encode()).decode()
        return Reply(535, f"5.7.8 {token} {words} {CLIENT_SECRET}")

    mailbox.inject(echo)
    queue_mail("to@example.com")
    deliver()
    mailbox.clear()
    authority.revoke()
    authority.fail(400, error="invalid_grant", error_description=f"{CLIENT_SECRET} is wrong")
    failure = connection.probe("smtp")
    assert "is wrong" in failure.reply
    tables = (EmailLog, DeliveryAttempt)
    stored = [str(row) for table in tables for row in table.objects.values_list()]
    source = oauth._sources["smtp"][2]
    token = source.current(5)
    seen = [*stored, caplog.text, repr(failure), repr(source), repr(token), str(token)]
    for secret in (*authority.issued, CLIENT_SECRET):
        for text in seen:
            assert secret not in text
            assert base64.b64encode(secret.encode()).decode()[:30] not in text
    assert "[hidden]" in "".join(stored)


def source(**form: Any) -> TokenSource:
    return TokenSource(form, Mailbox(MAILBOX, "smtp.example.com", 587))


def a_token_of_spaces() -> str:
    return "two words"


def an_error_with_a_secret() -> str:
    raise RuntimeError("the vault refused eyJhbGciOiJSUzI1NiIsImtpZCI6IjEyMzQ1Njc4OTAiLCJ0eXAiOi")


@pytest.mark.parametrize(
    ("name", "told"), [("a_token_of_spaces", "RFC 6750"), ("an_error_with_a_secret", "the vault")]
)
def test_a_function_that_returns_no_token_is_refused(name: str, told: str) -> None:
    with pytest.raises(oauth.TokenRefused, match=told) as caught:
        source(token=f"{__name__}.{name}").current(1)
    assert "eyJ" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None or caught.value.__suppress_context__


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_tokens_may_go_to_this_machine_unencrypted(host: str) -> None:
    oauth.require_encryption(host, encrypted=False)


def test_tokens_never_go_to_another_machine_unencrypted(use_options, mailbox, form) -> None:
    use_options(host="smtp.example.com", port=587, username=MAILBOX, oauth=form)
    failure = connection.probe("smtp")
    assert failure.kind is Kind.OUTAGE
    assert "unencrypted" in failure.reply
    use_options(host="smtp.example.com", username=MAILBOX, oauth=form, use_tls=True)
    assert connection.build("smtp").tokens is not None


def test_a_user_with_a_comma_is_quoted_in_oauthbearer() -> None:
    box = Mailbox("a,b=c@example.com", "smtp.example.com", 587)
    first = oauth.initial_response("OAUTHBEARER", box, oauth.Token("t", 0))
    assert first == (
        "n,a=a=2Cb=3Dc@example.com,\x01host=smtp.example.com\x01port=587\x01auth=Bearer t\x01\x01"
    )


def test_text_of_a_stranger_is_bounded_and_printable() -> None:
    text = source(token=f"{__name__}.a_token_of_spaces").safe_text("\x1b[31m " + "word " * 1000)
    assert len(text) <= 500
    assert text.isprintable()


def test_a_server_that_never_ends_its_challenges_learns_and_tells_nothing(
    log_in, authority, mailbox
) -> None:
    def echo(stage: str, session: Any) -> Any:
        if stage != "auth":
            return None
        return Reply(334, base64.b64encode(authority.issued[-1].encode()).decode())

    mailbox.inject(echo)
    failure = connection.probe("smtp")
    assert failure.kind is Kind.OUTAGE
    assert authority.issued[-1] not in failure.reply
    assert base64.b64encode(authority.issued[-1].encode()).decode()[:30] not in failure.reply


def test_the_server_of_the_tests_is_strict(mailbox: SMTPServer) -> None:
    """A client that answers the error with something else gets no 535."""
    with smtplib.SMTP("127.0.0.1", mailbox.port) as client:
        client.ehlo()
        answers = iter(["user=x\x01auth=Bearer y\x01\x01", "something"])
        with pytest.raises(smtplib.SMTPAuthenticationError) as caught:
            client.auth("XOAUTH2", lambda challenge=None: next(answers))
        assert caught.value.smtp_code == 501
