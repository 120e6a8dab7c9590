# flanneld, as its DaemonSet runs it. Arguments: the node's directory, name and number.
dir=$1
export NODE_NAME=$2
while :; do
  flannel -kube-subnet-mgr -kubeconfig-file "$dir/../admin.conf" -net-config-path "$dir/net-conf.json" \
    -subnet-file /run/flannel/subnet.env -ip-masq -iface eth0 >> "$dir/../log/$2-flannel.log" 2>&1 || :
  sleep 1
done &
# flannel's plugin reads subnet.env, and delegates to the plugin bridge with this MTU.
{
  until [ -s /run/flannel/subnet.env ]; do sleep 0.2; done
  . /run/flannel/subnet.env
  sed "s/\"mtu\": 1500/\"mtu\": $FLANNEL_MTU/" "$dir/10-e2e.conflist" > "$dir/cni/new"
  mv "$dir/cni/new" "$dir/cni/10-e2e.conflist"
} &
