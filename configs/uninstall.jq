# The pod that takes kata-gpu from one node, made of the DaemonSet: it has the same rights, and its
# token is bound to the node, as the admission policies want. README, "Taking it away".
{apiVersion: "v1", kind: "Pod", metadata: {name: "uninstall-\($node)", namespace: "kata-gpu"},
 spec: (.spec.template.spec + {nodeName: $node, restartPolicy: "Never", initContainers: []}
        | del(.nodeSelector, .containers[0].startupProbe, .containers[0].livenessProbe)
        | .containers[0].args = ["uninstall", "--yes"])}
