"""Answers that say that there is no answer, and how to say it in the question's language."""

import re

from server.tasks.rag.vocabulary import CJK

# By ISO 639 code; Chinese by script.
TEXTS = {
    "en": "The passages do not contain the answer.",
    "de": "Die Textstellen enthalten die Antwort nicht.",
    "fr": "Les passages ne contiennent pas la réponse.",
    "es": "Los pasajes no contienen la respuesta.",
    "zh-Hans": "这些段落不包含答案。",
    "zh-Hant": "這些段落不包含答案。",
    "ja": "引用された文章に答えは含まれていません。",
    "ko": "인용된 글에 답이 포함되어 있지 않습니다.",
}
# Frequent words of short questions, and letters that only one of these languages has.
_LATIN = {
    "en": """the is are were what which who whose when where why how does do did of and for with in can to an? has have
        it he she you i that many much""",
    "de": """der die das den dem ist sind was wie wer wann wo warum welche[mnrs]? wird wurde nicht ein eine einen und
        für mit von zu im nach kann darf hat gibt viel viele [^\\W\\d_]*[äöüß][^\\W\\d_]*""",
    "fr": """le la les l des du est sont quel quelle quels quelles qui que qu où quand comment combien pourquoi une et
        pour avec dans a de t il elle peut [^\\W\\d_]*[çèêëœàùûî][^\\W\\d_]*""",
    "es": """el la los las del es son qué cu[aá]l(?:es)? qui[eé]n d[oó]nde cu[aá]ndo c[oó]mo cu[aá]nt[oa]s? por una y
        para con de en tiene hay se [^\\W\\d_]*[ñáíóú][^\\W\\d_]*""",
}
_VOTES = {
    code: re.compile(rf"(?<![^\W_])(?:{'|'.join(words.split())})(?![^\W_])", re.IGNORECASE)
    for code, words in _LATIN.items()
}
# Frequent characters whose traditional and simplified forms differ.
_TRADITIONAL = frozenset(
    "們個這來時會對說過還沒學開長問見關發書東車門間給讓從點當電語請認識買賣體區號價錢館園圖實際現應該幾樣麼嗎誰為與於後術務"
    "員無產業經濟環國傳統總結論據處線碼導緒讀寫變網絡機構設備詞義轉換鐘裡數質量術藍紅綠黃飛風馬鳥魚龍齒"
)
_SIMPLIFIED = frozenset(
    "们个这来时会对说过还没学开长问见关发书东车门间给让从点当电语请认识买卖体区号价钱馆园图实际现应该几样么吗谁为与于后术务"
    "员无产业经济环国传统总结论据处线码导绪读写变网络机构设备词义转换钟里数质量术蓝红绿黄飞风马鸟鱼龙齿"
)

_SAY = (
    "(?:contain|mention|provide|state|specif|say|include|answer|give|describe|explain|list|cover|address|have|tell"
    "|indicate|discuss|identify|reveal)"
)
_SAY_NOTHING_ELSE = "(?:mention|state|specify|say|tell|indicate|discuss|address|answer)"
_PASSAGES = r"\b(?:passages?|quotations?|quotes?|excerpts?|snippets?)\b"
_SOURCES = r"\b(?:documents?|documentation|sources?|context|text|article|information|collection|materials?)\b"
_ANSWER = r"\b(?:answer|information|details?|data|mention)\b"
_NOT = r"\b(?:do|does|did)(?:\ not|n['’]t)"
_ABSTENTION = re.compile(
    rf"""
    # English
    \b(?:none|neither)\ of\ the\ (?:\w+\ )?(?:{_PASSAGES}|{_SOURCES})
    | {_PASSAGES}[^.]*(?:\b(?:do|does|did|is|are|was|were)(?:\ not|n['’]t)\b|\bno\b)[^.]*\b{_SAY}
    | {_SOURCES}[^.]*{_NOT}\ (?:\w+\ )?(?:{_SAY_NOTHING_ELSE}\b|{_SAY}[^.]*{_ANSWER})
    | \b(?:i|we)\ (?:really\ )?(?:do\ not|don['’]t)\ (?:know|have\ (?:enough|any|that|this|the|sufficient))
    | \b(?:i|we)(?:\ am|['’]m|\ are)\ (?:not\ sure|unsure|unable\ to|not\ able\ to)
    | \b(?:i|we)\ (?:cannot|can['’]t|could\ not|couldn['’]t)\ (?:answer|find|determine|tell|say|provide)
    | \bno\ (?:\w+\ )?{_ANSWER}\ (?:\w+\ )?(?:about|on|of|for|in|regarding|available|given|provided|found)\b
    | \bnot\ (?:\w+\ )?(?:mentioned|stated|specified|provided|contained|described|found|available|given|listed|covered
      |answered|included|known)(?:\ \w+)?\ (?:in|by|from)\ (?:\w+\ )?(?:\w+\ )?(?:{_PASSAGES}|{_SOURCES})
    | \b(?:cannot|can['’]t|could\ not)\ be\ (?:found|determined|answered|inferred|known)\b
    | \binsufficient\ information\b | \banswer\ is\ (?:unknown|not\ (?:known|available|given))
    # German
    | \b(?:passagen?|textstellen?|abschnitte?n?|texte?n?|dokumente?n?|kontext|quellen?|auszüge?n?)\b[^.]*
      (?:\b(?:enthalten|enthält|erwähn\w*|nenn\w*|beantwort\w*|geben|gibt|liefern?|steht|sagen|sagt)\b[^.]*\b
      (?:nicht|keine?n?|nichts)\b|\b(?:nicht|keine?n?|nichts)\b[^.]*\b(?:enthalten|erwähnt|genannt|beantwortet|angegeben))
    | \bwei(?:ß|ss)\ (?:ich\ )?(?:es\ |das\ |leider\ )*nicht\b | \bkeine\ (?:angaben?|information(?:en)?|auskunft)\b
    | \bnicht\ (?:erwähnt|angegeben|genannt|beantworten|beantwortet)\b
    # French
    | \b(?:passages?|extraits?|textes?|documents?|contexte|sources?)\b[^.]*\bn(?:e\ |['’])[^.]*\b
      (?:contien|contenir|mention|précis|indiqu|fourni|répond|donn|dit|disent|permet)[^.]*\b(?:pas|aucune?|rien)\b
    | \bje\ ne\ (?:le\ )?sais\ pas\b | \baucune\ (?:information|réponse|mention)\b
    | \bne\ (?:peux|puis|peut)\ pas\ (?:répondre|trouver|déterminer)\b
    | \bn['’]est\ pas\ (?:mentionn|précis|indiqu|spécifi)ée?\b
    # Spanish
    | \b(?:pasajes?|fragmentos?|extractos?|textos?|documentos?|contexto|fuentes?)\b[^.]*\bno\b[^.]*\b
      (?:contien|mencion|proporcion|especific|indic|dice|respond|incluy|da\b|dan\b)
    | \bno\ (?:lo\ )?s[eé]\b | \bno\ hay\ (?:información|respuesta)\b
    | \bno\ se\ (?:menciona|especifica|indica|proporciona)\b
    | \bno\ (?:puedo|es\ posible)\ (?:responder|determinar|encontrar)
    # Chinese
    | (?:段落|文中|文章|资料|資料|内容|內容|文档|文檔|文件|上下文|原文|文本|引文|片段)[^。]*
      (?:没有|沒有|未|不)[^。]{{0,12}}(?:提到|提及|说明|說明|包含|包括|答案|回答|信息|資訊|给出|給出|提供|指出|涉及|记载|記載)
    | 不(?:知道|清楚|确定|確定)(?:[。！，,]|\Z) | (?:无法|無法|不能)(?:回答|确定|確定|得知|判断|判斷|找到|提供)
    | (?:没有|沒有)(?:相关|相關|足够|足夠|提及|提到|找到) | 未(?:提及|提到|找到)
    # Japanese
    | (?:記載|言及|説明|記述)(?:が|は|も|されて)?い?(?:ません|ない|ありません) | 含まれてい(?:ません|ない)
    | (?:わか|分か)りません | 見つかりません
    | (?:情報|答え|回答)(?:が|は)(?:ありません|ない|含まれ) | 答えられません | 不明です
    # Korean
    | (?:포함|언급|명시|기재|제공|설명)(?:되어\ ?있지|하지|되지|하고\ 있지|되고\ 있지)\ ?않
    | 알\ 수\ 없 | 모르겠 | 모릅니다 | 찾을\ 수\ 없 | (?:정보|답|내용|언급)[이가은는]?\ ?없 | 나와\ ?있지\ 않
    """,
    re.IGNORECASE | re.VERBOSE,
)
_FIRST_SENTENCE = re.compile(r"[^\n]*?(?:[.!?](?=\s|\Z)|[。！？]|\Z|\n)")
_READ = 400  # code points of an answer; an abstention begins with what it is


def abstains(answer: str) -> bool:
    """Whether the answer says, first of all, that there is none."""
    first = _FIRST_SENTENCE.match(answer.lstrip()[:_READ])
    return bool(first and _ABSTENTION.search(first.group()))


def language_of(question: str) -> str:
    """A key of TEXTS: the script decides, then frequent words. English if the language is none of them."""
    if re.search("[\u3040-\u30ff]", question):
        return "ja"
    if re.search("[\u1100-\u11ff\uac00-\ud7af]", question):
        return "ko"
    if re.search(f"[{CJK}]", question):
        characters = set(question)
        is_traditional = len(characters & (_TRADITIONAL - _SIMPLIFIED)) > len(characters & (_SIMPLIFIED - _TRADITIONAL))
        return "zh-Hant" if is_traditional else "zh-Hans"
    if "¿" in question or "¡" in question:
        return "es"
    votes = {code: len(pattern.findall(question)) for code, pattern in _VOTES.items()}
    return max(votes, key=votes.__getitem__)  # the first of equals, English


def abstention(question: str) -> str:
    """The sentence that says, in the question's language, that there is no answer."""
    return TEXTS[language_of(question)]
