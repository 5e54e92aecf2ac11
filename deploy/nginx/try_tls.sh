#!/bin/sh
# Make an authority and a certificate to try things with: try_tls.sh FOLDER NAME…
#
# For the internet take a certificate that everybody trusts instead (Let's Encrypt): cert.pem is the
# whole chain, key.pem the key, both readable by nginx's uid 101.
set -eu

folder=$1
shift
names=$(for name in "$@"; do
    case $name in *[!0-9.]*) printf 'DNS:%s,' "$name" ;; *) printf 'IP:%s,' "$name" ;; esac
done)
mkdir -p "$folder"
cd "$folder"

openssl req -x509 -newkey rsa:2048 -nodes -days 30 -subj "/CN=drawbridge trial" \
    -addext "basicConstraints=critical,CA:TRUE" -addext "keyUsage=critical,keyCertSign" \
    -keyout ca.key -out ca.pem 2>/dev/null
openssl req -new -newkey rsa:2048 -nodes -subj "/CN=$1" -keyout key.pem -out cert.csr 2>/dev/null
printf 'subjectAltName=%s\nbasicConstraints=CA:FALSE\nextendedKeyUsage=serverAuth\n' "${names%,}" >ext
openssl x509 -req -in cert.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 30 -extfile ext \
    -out leaf.pem 2>/dev/null
cat leaf.pem ca.pem >cert.pem
rm -f ca.key ca.srl cert.csr ext leaf.pem
chmod 644 key.pem
