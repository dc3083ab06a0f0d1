"""Telling automated opens and clicks from those of people."""

from __future__ import annotations

import time

import pytest

from django_epica_mail.tracking.bots import asks_ahead, is_machine

PEOPLE = (
    ("Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 Chrome/126.0 Safari/537.36"),
    ("Mozilla/5.0 (iPhone; CPU iPhone OS 17_5 like Mac OS X) AppleWebKit/605.1.15 Mobile/15E148"),
    "Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Thunderbird/128.0",
    "Microsoft Office/16.0 (Windows NT 10.0; Microsoft Outlook 16.0.17726; Pro)",
    "Outlook-iOS/723.4027091.prod.iphone (4.28.0)",
    (
        "Mozilla/5.0 (compatible; MSIE 7.0; Windows NT 6.2; WOW64; Trident/7.0; "
        "Microsoft Outlook 15.0.4771; ms-office)"
    ),
    "Mozilla/5.0 (Linux; Android 14; cubot_x) AppleWebKit/537.36",
    ("Mozilla/5.0 (Linux; Android 9; CUBOT) AppleWebKit/537.36 Chrome/89.0 Mobile Safari/537.36"),
    (
        "Mozilla/5.0 (Linux; Android 9; CUBOT X19) AppleWebKit/537.36 Chrome/89.0 "
        "Mobile Safari/537.36"
    ),
    (
        "Mozilla/5.0 (Linux; Android 5.1; CUBOT_NOTE_S Build/LMY47I) AppleWebKit/537.36 "
        "Mobile Safari/537.36"
    ),
    (
        "Mozilla/5.0 (Linux; Android 7.0; M bot 60 Build/NRD90M) AppleWebKit/537.36 "
        "Chrome/70.0 Mobile Safari/537.36"
    ),
    (
        "Mozilla/5.0 (Linux; Android 7.0; M bot 54) AppleWebKit/537.36 Chrome/70.0 "
        "Mobile Safari/537.36"
    ),
    "Mozilla/5.0 (Linux; Android 8.1.0; Power Bot) AppleWebKit/537.36 Mobile Safari/537.36",
    "Mozilla/5.0 (Linux; Android 6.0; BOT TAB 10) AppleWebKit/537.36 Safari/537.36",
    ("Mozilla/5.0 (Linux; Android 9; TECNO PHANTOM 9) AppleWebKit/537.36 Mobile Safari/537.36"),
    ("Mozilla/5.0 (Linux; Android 8.1.0; ScanPal EDA50) AppleWebKit/537.36 Mobile Safari/537.36"),
    (
        "Mozilla/5.0 (iPhone; CPU iPhone OS 17_5 like Mac OS X) Mobile/15E148 "
        "[FBAN/FBIOS;FBAV/450.0;FBDV/iPhone14,5]"
    ),
    "Mozilla/5.0 (iPhone; CPU iPhone OS 17_5 like Mac OS X) Mobile/15E148 Instagram 330.0",
    (
        "Mozilla/5.0 (Linux; Android 13; SM-A515F) AppleWebKit/537.36 Chrome/124.0 "
        "Mobile Safari/537.36 WhatsApp/2.24.9"
    ),
    (
        "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/605.1.15 (KHTML, "
        "like Gecko) Slack_SSB/4.38"
    ),
    (
        "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/605.1.15 (KHTML, "
        "like Gecko) Version/17.5 Safari/605.1.15"
    ),
    (
        "Mozilla/5.0 (Windows NT 10.0) AppleWebKit/537.36 Chrome/125.0 Safari/537.36 "
        "OPR/110.0 (Edition Yx GX)"
    ),
    (
        "Mozilla/5.0 (Linux; Android 13; Pixel 7) AppleWebKit/537.36 Chrome/125.0 "
        "Mobile Safari/537.36 DuckDuckGo/5"
    ),
    "Nokia6300/2.0 (07.21) Profile/MIDP-2.0 Configuration/CLDC-1.1",
    (
        "Mozilla/5.0 (Linux; U; Android 4.4.2; en-us; Robot 4.0 Build/KOT49H) "
        "AppleWebKit/534.30 Mobile Safari/534.30"
    ),
    "Mozilla/5.0 (X11; CrOS x86_64 14541.0.0) AppleWebKit/537.36 Chrome/125.0 Safari/537.36",
    "Mozilla/5.0 (Linux; Android 12; Monitor) AppleWebKit/537.36 Chrome/125.0 Safari/537.36",
    ("Mozilla/5.0 (SMART-TV; Linux; Tizen 6.0) AppleWebKit/537.36 Version/6.0 TV Safari/537.36"),
    "eM Client/9.2",
    "AppleMail/16",
    "Airmail 5.7",
    "Evolution/3.52",
    "Postbox 7",
)
"""Mail programs, browsers, and phones and handhelds with names like those of robots."""

AUTOMATED = (
    "Mozilla/5.0",
    ("Mozilla/5.0 (Windows NT 5.1; rv:11.0) Gecko Firefox/11.0 (via ggpht.com GoogleImageProxy)"),
    "YahooMailProxy; https://help.yahoo.com/kb/yahoo-mail-proxy-SLN28749.html",
    "Mozilla/5.0 (compatible; bingbot/2.0; +http://www.bing.com/bingbot.htm)",
    "Barracuda Sentinel (EE)",
    "Mozilla/5.0 (X11; Linux x86_64) HeadlessChrome/126.0",
    "python-requests/2.32.0",
    "python-httpx/0.27",
    "curl/8.5.0",
    "Go-http-client/1.1",
    "",
    "  ",
    "Slack-ImgProxy (+https://api.slack.com/robots)",
    "Slackbot-LinkExpanding 1.0 (+https://api.slack.com/robots)",
    "Slackbot 1.0 (+https://api.slack.com/robots)",
    "facebookexternalhit/1.1 (+http://www.facebook.com/externalhit_uatext.php)",
    ("meta-externalagent/1.1 (+https://developers.facebook.com/docs/sharing/webmasters/crawler)"),
    (
        "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_11_1) AppleWebKit/601.2.4 "
        "Version/9.0.1 Safari/601.2.4 facebookexternalhit/1.1 Facebot Twitterbot/1.0"
    ),
    "WhatsApp/2.23.20.0",
    "WhatsApp/2.2236.3 N",
    "WhatsApp/2.21.12.21 A",
    "WhatsApp/2.19.81 i",
    "TelegramBot (like TwitterBot)",
    "Twitterbot/1.0",
    "LinkedInBot/1.0 (compatible; Mozilla/5.0; Apache-HttpClient +http://www.linkedin.com)",
    "Mozilla/5.0 (compatible; Discordbot/2.0; +https://discordapp.com)",
    (
        "Mozilla/5.0 (Windows NT 6.1; WOW64) SkypeUriPreview Preview/0.5 "
        "skype-url-preview@microsoft.com"
    ),
    "Viber/13.3",
    "Snap URL Preview Service; bot; snapchat; https://developers.snap.com/robots",
    "Mozilla/5.0 (compatible; Pinterestbot/1.0; +http://www.pinterest.com/bot.html)",
    "Google-Safety; +http://www.google.com/bot.html",
    "Mozilla/5.0 (compatible; Google-Apps-Script)",
    "FeedFetcher-Google; (+http://www.google.com/feedfetcher.html)",
    "Mozilla/5.0 (compatible; AhrefsBot/7.0; +http://ahrefs.com/robot/)",
    "Mozilla/5.0 (compatible; Baiduspider/2.0; +http://www.baidu.com/search/spider.html)",
    "Mozilla/5.0 (compatible; YandexBot/3.0; +http://yandex.com/bots)",
    (
        "Mozilla/5.0 (Linux; Android 6.0.1; Nexus 5X) AppleWebKit/537.36 Chrome/125 "
        "Mobile Safari/537.36 (compatible; Googlebot/2.1; "
        "+http://www.google.com/bot.html)"
    ),
    (
        "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 Chrome/69.0 Safari/537.36 "
        "Chrome-Lighthouse"
    ),
    "BingPreview/1.0b",
    "Mozilla/5.0 (Windows NT 6.1) AppleWebKit/534+ BingPreview/1.0b",
    "Microsoft Office Existence Discovery",
    "Microsoft-CryptoAPI/10.0",
    "Microsoft Office Protocol Discovery",
    "Proofpoint URL Defense",
    "Mozilla/5.0 (compatible; Mimecast)",
    "SymantecMail",
    "Mozilla/5.0 zgrab/0.x",
    "Wget/1.21",
    "axios/1.7.2",
    "node-fetch/1.0",
    "okhttp/4.12.0",
    "Java/17.0.1",
    "Apache-HttpClient/4.5 (Java/17)",
    "libwww-perl/6.77",
    "Ruby",
    "Faraday v2.9",
    "Guzzlehttp/7",
    "PHP/8.3",
    "Dalvik/2.1.0 (Linux; U; Android 14)",
    "aiohttp/3.9",
    "undici",
    "HTTPie/3.2",
    "PostmanRuntime/7.39",
    "UptimeRobot/2.0",
    "Mozilla/5.0 (compatible; UptimeRobot/2.0; http://www.uptimerobot.com/)",
    "Pingdom.com_bot_version_1.4",
    "StatusCake",
    "GPTBot/1.2",
    "ChatGPT-User/1.0",
    "ClaudeBot/1.0",
    "PerplexityBot/1.0",
    "Bytespider",
    "CCBot/2.0",
    "Iframely/1.3.1 (+https://iframely.com/docs/about)",
    "Embedly/0.2",
    "Mozilla/5.0 (compatible; redditbot/1.0)",
    "Mastodon/4.2 (http.rb/5.1)",
    "Synapse (bot; +https://github.com/matrix-org/synapse)",
    "ZoomInfoBot",
    "Mattermost-Bot/1.1",
    "Rocket.Chat/6",
    "Line-Parser/1.0",
    "kakaotalk-scrap/1.0",
)
"""Proxies, previews, scanners, robots and libraries."""


@pytest.mark.parametrize("agent", PEOPLE)
def test_what_people_look_through_is_not_automated(agent) -> None:
    assert not is_machine(agent)


@pytest.mark.parametrize("agent", AUTOMATED)
def test_proxies_previews_scanners_and_scripts_are_automated(agent) -> None:
    assert is_machine(agent)


def test_a_user_agent_of_any_length_is_judged_at_once() -> None:
    started = time.process_time()
    for agent in ("Mozilla/5.0 (" + "Android " * 20_000, "(" * 200_000, "bo" * 100_000):
        is_machine(agent)
    assert time.process_time() - started < 1


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
