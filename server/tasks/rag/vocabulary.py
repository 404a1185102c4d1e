"""Words that a check of answers must know: function words, questions, negations, numbers, units and what they measure.

English, German, French, Spanish, Chinese, Japanese and Korean. A language that is missing here is checked by its words
and numbers alone.
"""

import re

CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uac00-\ud7af"


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Words that carry no content of their own; also those that only frame an answer ("The answer to this question is").
ENGLISH = _words(
    """
    a about above after all also an and any are as at be been before being below between both but by can could did do
    does done during each every for from further had has have he her here hers him his how i if in into is it its just
    many me might more much must my of off on once one only or other our out over own per she should so some such than
    that the their them then there these they this those through to too under until up us very was we were what when
    where which while who whom whose why will with would you your yes no not never none cannot answer question passage
    passages according
    mean means meant meaning denote denotes
    """
)
FUNCTION_WORDS = ENGLISH | _words(
    """
    may signifie signifient significa significan
    aber als am an auch auf aus bei bin bis das dem den der des die dies diese dieser dieses durch ein eine einem einen
    einer eines er es für hat haben hatte ich ihr im in ist ja kann kein keine mit bedeutet bedeuten nach nein nicht
    noch nur oder sehr
    sein seine sich sie sind so über um und uns unter vom von vor wann war waren warum was welche welchem welchen
    welcher welches wenn wer werden wie wird wo wurde wurden zu zum zur darf dürfen muss müssen soll au aux avec ce ces
    cet cette combien comme comment dans de des du elle elles en est et être eu il ils je la le les leur leurs lui mais
    ne non nous où ou oui par pas plus pour pourquoi qu quand que quel quelle quelles quels qui quoi sa se ses son sont
    sur un une vous a ont été jusqu quelque al como con cual cuál cuáles cuando cuándo cuanta cuánta cuánto cuántos
    cuántas de del desde donde dónde el él ella ellos en entre era eres es esta está este esto están fue ha hay la las
    lo los más me mi muy ni no nos o para pero por qué que quien quién se ser sí sin sobre son su sus también tiene
    tienen un una unas uno unos y ya
    """
)
# Characters of Chinese, particles of Japanese and endings of Korean that carry no content.
FUNCTION_CHARACTERS = frozenset(
    "的是了在有和与與吗嗎呢吧啊么麼什谁誰哪几幾多少为為怎何之其这這那个個些也都就到被把从從对對于於以及或您你我他她它们們"
    "请請问問表示可要会會能得须須没沒不未无無非禁很此该該上下中里裡内內时時如果则則而且又再並并等所吗久"
    "のはがをにでとへもやかよねだですますたてしれるらりいうえおあこそくきけげさなまみむめわん"
    "은는이가을를의에서로와과도만입니다까요있습하고무엇언제어디왜얼마몇어느어떤"
)
QUESTION_WORDS = re.compile(
    r"\b(?:what|which|who|whom|whose|when|where|why|how|was|welche[mnrs]?|wer|wen|wem|wann|wo|woher|wohin|warum|wie"
    r"|wieso|que|quel(?:le)?s?|qui|quand|où|pourquoi|comment|combien|qué|cuál(?:es)?|quién(?:es)?|cuándo|d[oó]nde"
    r"|c[oó]mo|cuánt[oa]s?)\b"
    r"|什么|什麼|谁|誰|哪|几|幾|多少|为何|為何|怎|如何|多久|多重|多高|多长|多長|多大|多远|多遠|多快|多深|何|いつ|どこ|なぜ|どの|どれ|どんな"
    r"|どう|いくつ|いくら|무엇|누구|누가|언제|어디|왜|어떻게|얼마|몇|어느|어떤",
    re.IGNORECASE,
)
YES_OR_NO = re.compile(
    r"\s*(?:(?P<yes>yes|ja|oui|sí|si|是的|可以|はい|네|예)|(?P<no>no|nein|non|不是|不可以|いいえ|아니요|아니오))(?![^\W_])",
    re.IGNORECASE,
)
NEGATION = re.compile(
    r"\b(?:not|no|never|none|without|neither|nor|cannot|nicht|nein|nie|kein(?:e[mnrs]?)?|ohne|ne|pas|jamais|aucune?|sans"
    r"|sin|nunca|ning[uú]n[ao]?|tampoco)\b|n['’]t\b|\bn['’](?=[^\W\d_])"
    r"|不(?!同|仅|僅|但|过|過|断|斷|少|久)|没|沒|未|无法|無法|无需|無需|禁止|勿|别(?=[^的])|ません|ない|なし|않|없|못|아니|금지",
    re.IGNORECASE,
)
# What a value is: a maximum is no default. A statement about another of these does not answer the question.
ATTRIBUTES = _words(
    "default maximum minimum limit standardwert höchstwert mindestwert défaut máximo mínimo predeterminado"
)
ATTRIBUTE_OF = re.compile(
    r"\b(?:what|which)(?:['’]s| is| are| was| were) the ([\w\s-]{1,40}?) (?:of|for|in)\b", re.IGNORECASE
)
SUPERLATIVE = re.compile(
    r"\b(?!(?:test|rest|best|west|nest|guest|forest|request|manifest|digest|interest|honest|harvest|invest|suggest|contest"
    r"|protest|latest|quest|chest|arrest)\b)[a-z]{2,}est\b|\b(?:most|least)\b|最"
)
# "The second-largest city" is not the largest one.
ORDINAL = re.compile(
    r"\b(?P<ordinal>second|third|fourth|fifth|sixth|seventh|eighth|ninth|tenth|\d+(?:nd|rd|th))[- ](?P<word>[^\W\d_]+)",
    re.IGNORECASE,
)
# A sentence that begins with one of these speaks of what the sentence before it names.
REFERENCE = re.compile(
    r"\s*(?:(?:it|its|they|their|them|this|these|those|he|his|she|her|er|sie|es|sein|seine|ihr|ihre|dies\w*|il|elle|ils"
    r"|elles|ce|cette|ces|son|sa|ses|este|esta|estos|estas|ella|él|su|sus)\b"
    r"|(?:the|der|die|das|le|la|el)\s+(?:default|values?|maximum|minimum|limit|range|format|option|setting|parameter|command"
    r"|device|model|standardwert|wert|höchstwert|gerät|valeur|défaut|appareil|valor|aparato)\b|默认值?|默認值?|預設值?|它|其|该|該|此|这|這|これ|それ|その|この|이|그)",
    re.IGNORECASE,
)
# Two words that differ in these endings are the same word to a reader.
ENDINGS = {""} | _words(
    """
    s es e ed d ing ings er ers or ors r t ts te ten ion ions tion tions ation ations ition al ally ly ment ments ity y
    ies ied n en ern em ens st ste sten ung ungen ungs ig ige eur euse ité ités able ible ance ence ances ences hood
    ness ful less ive ives ible ables ant ante ar ir ado ada ados adas ción ciones o a os as é ée és ées ez ent aient
    ait ian ic ical ist ists
    """
)
# Questions ask with an adjective ("how high") for what texts and tables name with a noun ("Height").
QUALITIES = {
    "high": "height", "tall": "height", "long": "length", "deep": "depth", "wide": "width", "broad": "breadth",
    "heavy": "weight", "weigh": "weight", "weighs": "weight", "far": "distance", "fast": "speed", "hot": "temperature",
    "warm": "temperature", "cold": "temperature", "old": "age", "loud": "noise", "cost": "price", "costs": "price",
    "hoch": "höhe", "lang": "länge", "tief": "tiefe", "breit": "breite", "schwer": "gewicht", "wiegt": "gewicht",
    "weit": "entfernung", "schnell": "geschwindigkeit", "alt": "alter", "kostet": "preis", "teuer": "preis",
    "coûte": "prix", "coûtent": "prix", "pèse": "poids", "cuesta": "precio", "cuestan": "precio", "pesa": "peso",
}  # fmt: skip
NUMBER_WORDS = {
    word: number
    for number, words in {
        "0": "zero", "1": "1st", "2": "two 2nd", "3": "three third 3rd", "4": "four fourth 4th",
        "5": "five fifth 5th", "6": "six sixth 6th", "7": "seven seventh 7th", "8": "eight eighth 8th",
        "9": "nine ninth 9th", "10": "ten tenth 10th", "11": "eleven", "12": "twelve",
    }.items()
    for word in words.split()
}  # fmt: skip
SCALES = re.compile(
    r"\s?(?:million|billion|trillion|thousand|Mio\.?|Mrd\.?|Millionen|Milliarden|millions?|milliards?)\b"
)

# By what is measured: a line, or a part between "/", for each unit; it begins with the symbol.
_UNITS = {
    "length": """
        m metre metres meter meters mètre mètres metro metros 米 公尺 メートル 미터
        km kilometre kilometres kilometer kilometers kilomètre kilomètres kilómetro kilómetros 公里 千米 킬로미터
        cm centimetre centimetres centimeter centimeters 厘米 公分 センチ 센티미터
        mm millimetre millimetres millimeter millimeters 毫米 公釐 ミリ 밀리미터
        mi mile miles meile meilen 英里
        ft foot feet
        inch inches zoll
        ly light-year light-years lightyear lightyears lichtjahr lichtjahre 光年
        nm
        µm
    """,
    "mass": """
        g gram grams gramme grammes gramm gramo gramos 克 公克 グラム 그램
        kg kilogram kilograms kilo kilos kilogramm kilogrammes kilogramos 公斤 千克 キロ キログラム 킬로그램
        mg milligram milligrams
        lb lbs pound pounds 磅
        oz ounce ounces
        t ton tons tonne tonnes tonnen toneladas 吨 噸 トン 톤
    """,
    "time": """
        s sec secs second seconds sekunde sekunden seconde secondes segundo segundos 秒 초
        min mins minute minutes minuten minuto minutos 分钟 分鐘 分 분
        h hr hrs hour hours stunde stunden heure heures hora horas 小时 小時 時間 시간
        ms millisecond milliseconds 毫秒
        day days tag tage tagen jour jours día días 天 日 일
        week weeks woche wochen semaine semaines semana semanas 周 週 星期
        month months monat monate monaten mois mes meses 个月 個月 か月 개월
        year years jahr jahre jahren an ans année années año años 年 년
        µs
    """,
    "power": """
        W watt watts 瓦 瓦特 ワット 와트
        kW kilowatt kilowatts 千瓦 キロワット 킬로와트
        MW megawatt megawatts
        hp horsepower
    """,
    "energy": "J/kJ/Wh/kWh/kcal/cal",
    "electricity": """
        V volt volts 伏 伏特 ボルト 볼트
        A amp amps ampere amperes 安 安培
        mA/mAh/kV
    """,
    "frequency": "Hz hertz 赫兹 赫茲/kHz/MHz/GHz/rpm",
    "data": """
        B byte bytes octets 字节 位元組
        bit bits
        kB/KB kilobytes/MB megabyte megabytes/GB gigabyte gigabytes/TB terabyte terabytes/KiB/MiB/GiB/TiB
    """,
    "rate": "Mbit-s Mbps/Gbit-s Gbps/kbit-s kbps/MB-s/GB-s/MiB-s",
    "speed": "m-s/km-s/km-h kph/mph/cm-s/knots",
    "temperature": "°C ℃ 摄氏度 攝氏度/°F/K kelvin/° degree degrees grad grados degrés 度 도",
    "money": """
        USD $ dollar dollars 美元
        EUR € euro euros
        GBP £
        JPY ¥ 円
        元 CNY RMB TWD NT$ 인민폐
        KRW 원
        CHF
    """,
    "share": "% percent prozent percento 퍼센트",
    "area": "m² m2 平方米/km² km2 平方公里/ha hectare hectares/sqft",
    "volume": "L l litre litres liter liters litro litros 升 公升 リットル 리터/ml mL 毫升/m³ m3",
    "sound": "dB decibel decibels 分贝 分貝 デシベル 데시벨",
}
UNIT: dict[str, str] = {}  # spelling -> unit
DIMENSION: dict[str, str] = {}  # unit -> what it measures
for _dimension, _lines in _UNITS.items():
    for _line in filter(None, re.split(r"\s*[\n/]\s*", _lines)):
        _unit, *_spellings = _line.split()
        _unit = re.sub(r"-(?=[sh]\Z)", "/", _unit)  # "m/s"
        DIMENSION[_unit] = _dimension
        UNIT |= dict.fromkeys((_unit, *_spellings), _unit)

# Words of a question that ask for a quantity, and what may measure it.
ASKED_DIMENSIONS = tuple(
    (re.compile(pattern, re.IGNORECASE | re.VERBOSE), dimensions)
    for pattern, dimensions in (
        (r"""\bhow\ (?:deep|tall|high|wide|far)\b | \b(?:height|depth|width|diameter|distance)\b
             | \bwie\ (?:hoch|tief|breit|weit)\b | 高度|深度|直径|直徑|距离|距離|多高|多深|多远|多遠""", "length rate"),
        (r"""\bhow\ heavy\b | \b(?:weighs?|weight|mass)\b | \bwie\ schwer\b | \bpèse\b | \bpesan?\b
             | 重量|多重|体重|重さ|무게""", "mass"),
        (r"""\bhow\ fast\b | \b(?:speed|velocity|vitesse|velocidad|geschwindigkeit)\b | 速度|時速|속도""",
         "speed rate frequency"),
        (r"""\bhow\ (?:warm|hot|cold)\b | \btemp[eé]ratur[ea]?\b | 温度|溫度|온도""", "temperature"),
        (r"""\b(?:prices?|costs?|kostet|preis|coûte|prix|cuestan?|precio)\b
             | 价格|價格|多少钱|多少錢|票价|票價|값|가격|値段""", "money"),
        (r"""\bhow\ loud\b | \bnoise\b""", "sound"),
        (r"""\bhow\ long\ (?:does|do|did|will|can|until)\b | \bwie\ lange\b | \bcombien\ de\ temps\b
             | \bcuánto\ (?:tiempo|dura)\b | 多久|多长时间|多長時間|期間|기간""", "time"),
        (r"""\bwattage\b | \bpower\ (?:consumption|draw)\b | 功率|消費電力|소비\ 전력""", "power"),
    )
)  # fmt: skip
