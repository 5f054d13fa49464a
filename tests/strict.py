"""The policy that control makes of `PeerAuthentication` STRICT: who proves no identity is denied."""

from mesh.policy import Action, Match, Policy, Scope, StringMatch

STRICT = Policy(
    "istio-system",
    "istio_converted_static_strict",
    Scope.WORKLOAD_SELECTOR,
    Action.DENY,
    (((Match(not_principals=(StringMatch("presence"),)),),),),
)
