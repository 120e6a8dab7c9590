# kube-router, as its DaemonSet runs it beside a proxy for Services. Arguments: the node's directory, name and number.
dir=$1
export NODE_NAME=$2 POD_NAME=kube-router-$2 KUBE_ROUTER_CNI_CONF_FILE=$dir/cni/10-e2e.conflist
# It adds names of routing tables to a file of the machine, of which the node has its own from here on.
for tables in /etc/iproute2 /usr/share/iproute2; do
  [ -d "$tables" ] || continue
  cp -r "$tables" "$dir/iproute2-copy"
  mount -t tmpfs -o mode=755 tmpfs "$tables"
  cp -r "$dir/iproute2-copy/." "$tables"
  rm -r "$dir/iproute2-copy"
done
while :; do
  kube-router --kubeconfig "$dir/../admin.conf" --hostname-override "$NODE_NAME" --enable-ipv6 \
    --service-cluster-ip-range 10.96.0.0/16 --service-cluster-ip-range fd96::/108 \
    --run-router=true --run-firewall=true --run-service-proxy=false --bgp-graceful-restart=true \
    >> "$dir/../log/$NODE_NAME-kube-router.log" 2>&1 || :
  sleep 1
done &
