"""The smallest application: greet known callers by name, and note customers to call back."""

from millis_hooks import EndOfCall, MillisHooks, PrefetchRequest, PrefetchResponse

CUSTOMERS = {"+14155550134": "Ada"}  # your CRM

hooks = MillisHooks(own_numbers={"+14155550199"})  # the other number is the customer's


@hooks.on_prefetch
async def greet(call: PrefetchRequest) -> PrefetchResponse | None:
    name = CUSTOMERS.get(call.customer_phone or "")  # None on web calls
    return PrefetchResponse(metadata={"first_name": name}) if name else None


@hooks.on_end_of_call(outcome="voicemail")
def call_back(call: EndOfCall) -> None:
    print("call back", call.customer_phone)
