"""What is said in the calls of a generated log, and what their agents were told to say.

Most sentences are common, and names and numbers make each call its own: that is how searches meet
words that are everywhere, rare, or not there.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

_NOUNS = (
    "invoice delivery refund kitchen garden insurance passport appointment dentist brake engine "
    "subscription password router modem holiday flight hotel breakfast airport parcel warranty "
    "contract signature mortgage window roof plumber boiler electrician battery charger keyboard "
    "medicine prescription allergy vaccine referral school lesson piano violin concert ticket "
    "theatre museum library membership bicycle helmet tyre puncture bakery wedding anniversary "
    "flowers candle furniture mattress cupboard bookshelf carpet curtain laundry suitcase camera "
    "telescope microphone headphones printer cartridge envelope stamp voucher discount receipt "
    "account statement transfer overdraft pension salary reference translator notary solicitor"
)
_THINGS = _NOUNS.split()
#: What is said, by language: {thing}, {name}, {time} and {code} are filled in.
_SAID = {
    "en-US": (
        "Hello, this is {name}, how may I help you today?",
        "I am calling about the {thing}, it has not arrived yet.",
        "Could you tell me the reference on your {thing}, please?",
        "Yes, that would be {code}, I think.",
        "I have found it. The {thing} was sent last {time} and should be with you soon.",
        "That is what I was told the other day as well, and nothing happened.",
        "I understand, and I am sorry about the trouble with your {thing}.",
        "Would {time} work for you? There is a place at half past ten.",
        "No, rather in the afternoon, because I am at work before that.",
        "My wife {name} will be at home then. Can she sign for the {thing}?",
        "Is there anything else that I can do for you?",
        "How much would it be for the {thing} and the {thing} together?",
        "One moment, let me look that up in our system.",
        "Thank you very much, have a nice day. Goodbye.",
        "Please do not send it to the old address on {name} Street.",
        "Right, I have written that down: {name}, {time}, number {code}.",
    ),
    "de-DE": (
        "Guten Tag, hier spricht {name}. Wie kann ich Ihnen helfen?",
        "Es geht um meine Rechnung {code}, da stimmt etwas nicht.",
        "Einen Augenblick, ich sehe für Sie nach.",
        "Können wir den Termin auf {time} verschieben?",
        "Straße und Hausnummer haben sich geändert, wir wohnen jetzt bei {name}.",
        "Das tut mir leid. Ich schicke Ihnen gleich eine Bestätigung.",
        "Vielen Dank, auf Wiederhören.",
    ),
    "es-ES": (
        "Buenos días, soy {name}. ¿En qué puedo ayudarle?",
        "Quisiera cambiar mi cita del {time}, por favor.",
        "¿Me puede decir el número de referencia? Es el {code}.",
        "Sí, mañana por la mañana está bien.",
        "Muchas gracias, que tenga un buen día.",
    ),
    "ja-JP": (
        "お電話ありがとうございます。{name}でございます。",
        "予約を変更したいのですが、空いていますか。",
        "少々お待ちください。確認いたします。",
        "注文番号は{code}です。",
        "ありがとうございました。失礼いたします。",
    ),
    "ar-SA": (
        "مرحبا، معك {name}، كيف يمكنني مساعدتك؟",
        "أريد تغيير موعدي من فضلك.",
        "رقم الطلب هو {code}.",
        "شكرا جزيلا، مع السلامة.",
    ),
}
_LANGUAGES = {"en-US": 70, "de-DE": 10, "es-ES": 10, "ja-JP": 6, "ar-SA": 4}
_FUNCTIONS = ("find_slot", "book_slot", "cancel_slot", "hand_over")
_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "next week")
_SOUNDS = "ba den ful gar hol is jo ker lan mo nev or pat quin ros sel tam ulf ver win yor"
_SYLLABLES = _SOUNDS.split()
_PROMPT = (
    "You answer the telephone for a company. Be brief, be kind, and never guess. ",
    "Ask for the caller's name first, and repeat numbers digit by digit. ",
    "When the caller wants to move an appointment, offer two times and wait. ",
    "Never tell prices that are not in the list below, and hand over to a person when asked. ",
    "If the caller is silent for long, ask whether somebody is still there. ",
    "Speak the caller's language, and say dates in words. ",
)


def line(chance: random.Random, language: str) -> str:
    """Return a sentence with its gaps filled in."""
    said = chance.choice(_SAID[language])
    fills: dict[str, Callable[[], str]] = {
        "{thing}": lambda: chance.choice(_THINGS),
        "{name}": lambda: name(chance),
        "{time}": lambda: chance.choice(_DAYS),
        "{code}": lambda: str(chance.randrange(10**6)),
    }
    for gap, fill in fills.items():
        while gap in said:
            said = said.replace(gap, fill(), 1)
    return said


def language(chance: random.Random) -> str:
    """Return the language of a call."""
    return chance.choices(tuple(_LANGUAGES), tuple(_LANGUAGES.values()))[0]


def name(chance: random.Random) -> str:
    """Return one of some ten thousand names."""
    return "".join(chance.choices(_SYLLABLES, k=3)).capitalize()


def agent_config(chance: random.Random) -> dict[str, Any]:
    """Return the configuration of an agent, with a prompt of one to three thousand characters."""
    return {
        "prompt": "".join(chance.choices(_PROMPT, k=chance.randrange(14, 40))),
        "voice": {"provider": "elevenlabs", "voice_id": "21m00Tcm4TlvDq8ikWAM"},
        "language": "en-US",
        "llm": {"model": "gpt-4o", "temperature": 0.2},
        "session_timeout": {"max_duration": 3600, "max_idle": 60, "message": "Goodbye."},
        "tools": [_tool(function) for function in _FUNCTIONS],
    }


def _tool(function: str) -> dict[str, Any]:
    return {
        "name": function,
        "description": f"Use it to {function.replace('_', ' ')} when the caller asks.",
        "params": [{"name": "day", "type": "string", "required": True}],
        "webhook": f"https://api.example/{function}",
    }
