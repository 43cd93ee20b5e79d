"""What KubeRay's RayService (ray.io/v1) has, as a JSON schema of the fields that the manifests here use.

Written from the API reference of KubeRay; pods are checked against Kubernetes' own schema instead.
"""

from typing import Any


def closed(required: tuple[str, ...] = (), **properties: Any) -> dict[str, Any]:
    """An object with these fields and no others."""
    return {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False}


STRING, BOOLEAN, COUNT = {"type": "string"}, {"type": "boolean"}, {"type": "integer", "minimum": 0}
START = {"type": "object", "additionalProperties": STRING}
POD_TEMPLATE = {"type": "object", "required": ["spec"]}

HEAD = closed(("template",), rayStartParams=START, serviceType=STRING, template=POD_TEMPLATE)
WORKERS = closed(
    ("groupName", "template"),
    groupName=STRING,
    replicas=COUNT,
    minReplicas=COUNT,
    maxReplicas=COUNT,
    numOfHosts=COUNT,
    rayStartParams=START,
    template=POD_TEMPLATE,
)
CLUSTER = closed(
    ("headGroupSpec",),
    rayVersion=STRING,
    enableInTreeAutoscaling=BOOLEAN,
    authOptions=closed(mode={"enum": ["disabled", "token"]}, secretName=STRING),
    headGroupSpec=HEAD,
    workerGroupSpecs={"type": "array", "items": WORKERS},
)
RAY_SERVICE = closed(
    ("apiVersion", "kind", "metadata", "spec"),
    apiVersion={"const": "ray.io/v1"},
    kind={"const": "RayService"},
    metadata=closed(("name",), name={"type": "string", "pattern": "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"}),
    spec=closed(("rayClusterConfig",), serveConfigV2=STRING, rayClusterConfig=CLUSTER),
)
