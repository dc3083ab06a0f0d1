"""Telling automated opens and clicks from those of people."""

from __future__ import annotations

import pytest

from django_epica_mail.tracking.bots import asks_ahead, is_machine

MAIL_CLIENTS = (
    "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 Chrome/126.0 Safari/537.36",
    "Mozilla/5.0 (iPhone; CPU iPhone OS 17_5 like Mac OS X) AppleWebKit/605.1.15 Mobile/15E148",
    "Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Thunderbird/128.0",
    "Microsoft Office/16.0 (Windows NT 10.0; Microsoft Outlook 16.0.17726; Pro)",
    "Mozilla/5.0 (Linux; Android 14; cubot_x) AppleWebKit/537.36",
)
AUTOMATED = (
    "Mozilla/5.0",
    "Mozilla/5.0 (Windows NT 5.1; rv:11.0) Gecko Firefox/11.0 (via ggpht.com GoogleImageProxy)",
    "YahooMailProxy; https://help.yahoo.com/kb/yahoo-mail-proxy-SLN28749.html",
    "Mozilla/5.0 (compatible; bingbot/2.0; +http://www.bing.com/bingbot.htm)",
    "Barracuda Sentinel (EE)",
    "Mozilla/5.0 (X11; Linux x86_64) HeadlessChrome/126.0",
    "python-requests/2.32.0",
    "curl/8.5.0",
    "Go-http-client/1.1",
    "",
    "  ",
)


@pytest.mark.parametrize("agent", MAIL_CLIENTS)
def test_mail_clients_of_people_are_not_automated(agent) -> None:
    assert not is_machine(agent)


@pytest.mark.parametrize("agent", AUTOMATED)
def test_proxies_scanners_and_scripts_are_automated(agent) -> None:
    assert is_machine(agent)


@pytest.mark.parametrize(
    ("method", "headers", "ahead"),
    [
        ("GET", {}, False),
        ("HEAD", {}, True),
        ("GET", {"Sec-Purpose": "prefetch;prerender"}, True),
        ("GET", {"Purpose": "prefetch"}, True),
        ("GET", {"X-Purpose": "preview"}, True),
        ("GET", {"X-Moz": "prefetch"}, True),
        ("GET", {"Sec-Purpose": ""}, False),
    ],
)
def test_a_prefetch_is_not_a_person_looking(method, headers, ahead) -> None:
    assert asks_ahead(method, headers) is ahead
