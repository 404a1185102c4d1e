"""Texts of our own to compare engines on: opinions, and beginnings of encyclopedia articles."""

from itertools import product

_THINGS = (
    "The film", "This phone", "Our waiter", "The new album", "My flight", "The hotel room", "Her latest novel",
    "The customer service", "That restaurant", "The second season", "Their update", "The parcel",
)  # fmt: skip
_VERDICTS = (
    "was an absolute delight from beginning to end.",
    "is the worst I have come across in years.",
    "exceeded every expectation I had :)",
    "broke after two days, and nobody cared.",
    "was fine, neither good nor bad.",
    "made me laugh out loud more than once!",
    "left me cold; what a waste of money.",
    "arrived on Tuesday at ten.",
    "is beautiful, clever and warm.",
    "bored us to tears!!!",
    "could be better, but could be a lot worse.",
    "deserves every prize there is.",
    "was rude, slow and far too expensive.",
    "has a blue cover and 300 pages.",
    "felt rushed, though the ending moved me.",
    "I would recommend to all my friends.",
    "is not what was promised.",
    "works as described in the manual.",
    "smelled awful.",
    "is a small miracle.",
)
_SUBJECTS = (
    "a Baroque composer whose organ works are still played in churches across Europe",
    "a river that rises in the mountains and flows 900 kilometres to the sea",
    "a theorem in number theory that was proved after three centuries",
    "a genus of flowering plants in the rose family, native to temperate regions",
    "a battle in which the outnumbered army defended the bridge until nightfall",
    "a physicist known for measurements of the speed of light",
    "a team sport played on grass between two sides of eleven players",
    "the capital and the most populous city of the province, with a port and a university",
    "a programming language designed for numerical computation",
    "an enzyme that breaks down starch into sugars in the human body",
    "a school of philosophy that held virtue to be the only good",
    "a painter of landscapes and portraits who lived in Venice",
)
_SENTENCES = (
    "It is {}.",
    "In the nineteenth century it was described as {}.",
    "The name refers to {}.",
    "Also known by its Latin name, it is {}.",
    "Historians disagree about whether there ever was {}.",
    "{} is the subject of this article, which also covers its origins and its influence.",
    "One of the best known examples is {}.",
    "The museum of the town has a collection on {}.",
    "Scholars of several countries have written about {}.",
    "For many years people knew little of {}.",
    "It should not be confused with {}.",
    "There is a stamp that shows {}.",
    "The word is used in two senses; the more common one means {}.",
    "His most cited book begins with {}.",
    "In a poll of readers the first place went to {}.",
    "A bronze statue commemorates {}.",
    "The first chapter of every textbook introduces {}.",
    "On maps and in letters of the time we find {}.",
    "It has been called {}, though not without reservations.",
    "The foundation supports research into {}.",
)

OPINIONS = tuple(f"{thing} {verdict}" for thing, verdict in product(_THINGS, _VERDICTS))
LEADS = tuple(sentence.format(subject) for sentence, subject in product(_SENTENCES, _SUBJECTS))
