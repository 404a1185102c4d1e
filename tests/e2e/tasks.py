"""What the tests of the tasks share."""

from quintet.v1 import chat_pb2, common_pb2, pricing_pb2

TIMEOUT = 60.0
HOUSE = pricing_pb2.House(
    above_ground_area_sqft=1710,
    lot_area_sqft=8450,
    overall_quality=7,
    overall_condition=5,
    year_built=2003,
    year_remodeled=2003,
    basement_area_sqft=856,
    garage_cars=2,
    full_baths=2,
    half_baths=1,
    bedrooms=3,
    total_rooms=8,
    fireplaces=0,
    neighborhood="CollgCr",
    building_type="1Fam",
    house_style="2Story",
    central_air=True,
    kitchen_quality="Gd",
)


def made_by(model: common_pb2.ModelRef, name: str) -> bool:
    return model.name == name and bool(model.version) and model.digest.startswith("sha256:")


def conversation(text: str) -> list[chat_pb2.ChatMessage]:
    return [chat_pb2.ChatMessage(role=chat_pb2.CHAT_ROLE_USER, content=text)]
