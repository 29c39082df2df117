"""The fields of operators' objects that our manifests use, as JSON Schema.

Kubernetes' own schemas do not have them, and the operators' are megabytes. Written down from the definitions
of prometheus-operator 0.93, KEDA 2.20, cert-manager 1.21 and k8ssandra-operator 1.32. A field that is not
here is refused, so that a misspelt one is; one that we begin to use is looked up, and added.
"""

from __future__ import annotations

from typing import Any, Final

Schema = dict[str, Any]

TEXT: Final[Schema] = {"type": "string", "minLength": 1}
NUMBER: Final[Schema] = {"type": "integer", "minimum": 0}
FLAG: Final[Schema] = {"type": "boolean"}
TEXTS: Final[Schema] = {"type": "object", "additionalProperties": TEXT}
DURATION: Final[Schema] = {"type": "string", "pattern": r"^([0-9]+(ms|s|m|h))+$"}
QUANTITIES: Final[Schema] = {"type": "object", "additionalProperties": {"type": "string", "pattern": r"^\d+"}}


def fields(required: str = "", **properties: Schema) -> Schema:
    """An object of these fields and no others; *required* are separated by spaces."""
    return {
        "type": "object",
        "properties": properties,
        "required": required.split(),
        "additionalProperties": False,
    }


def some(items: Schema) -> Schema:
    return {"type": "array", "items": items, "minItems": 1}


def named(api_version: str, spec: Schema) -> Schema:
    """An object with metadata and a spec."""
    return fields(
        "apiVersion kind metadata spec",
        apiVersion={"const": api_version},
        kind=TEXT,
        metadata=fields("name", name=TEXT, namespace=TEXT, labels=TEXTS),
        spec=spec,
    )


_RULE = fields("alert expr", alert=TEXT, expr=TEXT, labels=TEXTS, annotations=TEXTS, **{"for": DURATION})
_POLICY = fields(
    "type value periodSeconds", type={"enum": ["Pods", "Percent"]}, value=NUMBER, periodSeconds=NUMBER
)
_BEHAVIOR = fields(stabilizationWindowSeconds=NUMBER, policies=some(_POLICY))
_TRIGGER = fields(
    "type metadata",
    type={"const": "prometheus"},
    metricType={"enum": ["AverageValue", "Value"]},
    metadata=fields(
        "serverAddress query threshold",
        serverAddress=TEXT,
        query=TEXT,
        threshold={"type": "string", "pattern": r"^[0-9.]+$"},
        ignoreNullValues={"enum": ["true", "false"]},
    ),
)
_KEY = fields("name key", name=TEXT, key=TEXT)
_STORES = (
    "keystoreSecretRef",
    "keystorePasswordSecretRef",
    "truststoreSecretRef",
    "truststorePasswordSecretRef",
)

SCHEMAS: Final[dict[str, Schema]] = {
    "ServiceMonitor": named(
        "monitoring.coreos.com/v1",
        fields(
            "selector endpoints",
            selector=fields("matchLabels", matchLabels=TEXTS),
            endpoints=some(fields("port", port=TEXT, path=TEXT, interval=DURATION, scrapeTimeout=DURATION)),
        ),
    ),
    "PrometheusRule": named(
        "monitoring.coreos.com/v1",
        fields("groups", groups=some(fields("name rules", name=TEXT, interval=DURATION, rules=some(_RULE)))),
    ),
    "ScaledObject": named(
        "keda.sh/v1alpha1",
        fields(
            "scaleTargetRef triggers",
            scaleTargetRef=fields("name", kind=TEXT, name=TEXT),
            minReplicaCount=NUMBER,
            maxReplicaCount=NUMBER,
            pollingInterval=NUMBER,
            cooldownPeriod=NUMBER,
            advanced=fields(
                horizontalPodAutoscalerConfig=fields(behavior=fields(scaleUp=_BEHAVIOR, scaleDown=_BEHAVIOR))
            ),
            triggers=some(_TRIGGER),
        ),
    ),
    "Certificate": named(
        "cert-manager.io/v1",
        fields(
            "secretName issuerRef",
            secretName=TEXT,
            issuerRef=fields("name", kind=TEXT, name=TEXT),
            commonName=TEXT,
            duration=DURATION,
            renewBefore=DURATION,
            usages=some({"enum": ["server auth", "client auth"]}),
            dnsNames=some(TEXT),
            keystores=fields(jks=fields("create passwordSecretRef", create=FLAG, passwordSecretRef=_KEY)),
        ),
    ),
    "K8ssandraCluster": named(
        "k8ssandra.io/v1alpha1",
        fields(
            "cassandra",
            auth=FLAG,
            cassandra=fields(
                "datacenters",
                serverVersion={"type": "string", "pattern": r"^5\.0\.\d+$"},
                datacenters=some(fields("metadata size", metadata=fields("name", name=TEXT), size=NUMBER)),
                storageConfig=fields(
                    cassandraDataVolumeClaimSpec=fields(
                        accessModes=some(TEXT), resources=fields(requests=QUANTITIES)
                    )
                ),
                resources=fields(requests=QUANTITIES, limits=QUANTITIES),
                config=fields(jvmOptions=fields(heapSize=TEXT), cassandraYaml={"type": "object"}),
                clientEncryptionStores=fields(" ".join(_STORES), **dict.fromkeys(_STORES, _KEY)),
            ),
        ),
    ),
}
"""By kind."""
