# Policy routing and rules of the AWS VPC plugin, for pods of a second device. Arguments: the node's directory, name
# and number. VPC: 172.29.0.0/24, 172.30.0.0/24 and 10.244.0.0/16.
ip rule | grep -q '0x80/0x80' && exit
ip route add 172.29.0.0/24 dev eth1 scope link table 2
ip route add default via 172.29.0.20 dev eth1 table 2
ip rule add priority 512 to "10.244.$3.0/24" lookup main
# Answers to connections that came by the first device leave by it, and so do connections to the world.
ip rule add priority 1024 fwmark 0x80/0x80 lookup main
ip rule add priority 1536 from "10.244.$3.0/24" lookup 2
ip -6 route add fd29::/64 dev eth1 table 2
ip -6 route add default via fd29::20 dev eth1 table 2
ip -6 rule add priority 512 to "fd44:0:0:$3::/64" lookup main
ip -6 rule add priority 1024 fwmark 0x80/0x80 lookup main
ip -6 rule add priority 1536 from "fd44:0:0:$3::/64" lookup 2
iptables-restore --wait <<EOF
*mangle
:PREROUTING ACCEPT [0:0]
-A PREROUTING -i eth0 -m addrtype --dst-type LOCAL --limit-iface-in -j CONNMARK --set-xmark 0x80/0x80
-A PREROUTING -i veth+ -j CONNMARK --restore-mark --nfmask 0x80 --ctmask 0x80
COMMIT
*nat
:PREROUTING ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
:AWS-CONNMARK-CHAIN-0 - [0:0]
:AWS-SNAT-CHAIN-0 - [0:0]
-A PREROUTING -i veth+ -j AWS-CONNMARK-CHAIN-0
-A PREROUTING -j CONNMARK --restore-mark --nfmask 0x80 --ctmask 0x80
-A AWS-CONNMARK-CHAIN-0 -d 172.29.0.0/24 -j RETURN
-A AWS-CONNMARK-CHAIN-0 -d 172.30.0.0/24 -j RETURN
-A AWS-CONNMARK-CHAIN-0 -d 10.244.0.0/16 -j RETURN
-A AWS-CONNMARK-CHAIN-0 -j CONNMARK --set-xmark 0x80/0x80
-A POSTROUTING -j AWS-SNAT-CHAIN-0
-A AWS-SNAT-CHAIN-0 -d 172.29.0.0/24 -j RETURN
-A AWS-SNAT-CHAIN-0 -d 172.30.0.0/24 -j RETURN
-A AWS-SNAT-CHAIN-0 -d 10.244.0.0/16 -j RETURN
-A AWS-SNAT-CHAIN-0 ! -o vlan+ -m addrtype ! --dst-type LOCAL -j SNAT --to-source 172.30.0.1$3 --random-fully
COMMIT
EOF
ip6tables-restore --wait <<EOF
*mangle
:PREROUTING ACCEPT [0:0]
-A PREROUTING -i eth0 -m addrtype --dst-type LOCAL --limit-iface-in -j CONNMARK --set-xmark 0x80/0x80
-A PREROUTING -i veth+ -j CONNMARK --restore-mark --nfmask 0x80 --ctmask 0x80
COMMIT
EOF
