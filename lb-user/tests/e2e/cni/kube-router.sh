# kube-router without its service proxy. Arguments: the node's directory, name and number.
dir=$1 name=$2
# kube-router marks this bridge's packets, and routes to it.
while :; do
  kube-router --run-router=true --run-firewall=true --run-service-proxy=false --run-loadbalancer=false \
    --enable-cni=false --enable-ipv6=true --kubeconfig="$dir/../admin.conf" --hostname-override="$name" \
    --service-cluster-ip-range=10.96.0.0/16 --service-cluster-ip-range=fd96::/108 \
    >> "$dir/../log/$name-kube-router.log" 2>&1 || :
  sleep 1
done &
