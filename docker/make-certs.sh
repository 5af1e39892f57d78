#!/bin/sh
# Certificates and keys of a federation. Nothing that exists is ever overwritten; a second call makes what is missing.
#
#   ./make-certs.sh coordinator ADDRESS...   the authority, and the server's certificate for these host names and IP addresses
#   ./make-certs.sh site NAME...             an EC key for each site; a site that has this script makes its own
#
# OUT (default certs): the folder. DAYS (825): how long the server's certificate holds; AUTHORITY_DAYS (3650). Needs openssl and
# ssh-keygen. Private files are readable by their owner alone, who must be the user of the containers (10001): as root this
# script sees to it, otherwise it says how.
set -eu
umask 077
OUT=${OUT:-certs} DAYS=${DAYS:-825} AUTHORITY_DAYS=${AUTHORITY_DAYS:-3650} USER_ID=10001

say() { printf '%s\n' "$*"; }
fail() { say "make-certs.sh: $*" >&2; exit 2; }
usage() { sed -n 's/^# \{0,1\}//; 2,9p' "$0" >&2; exit 2; }

# Give what the containers read to their user.
hand_over() {
    if [ "$(id -u)" = 0 ]; then chown -R "$USER_ID:$USER_ID" "$@"; else say "now:  sudo chown -R $USER_ID:$USER_ID $*"; fi
}

# "b,a" of "DNS:b, IP Address:a": what a certificate holds for, in one order.
names_in() { openssl x509 -in "$1" -noout -ext subjectAltName | sed '1d; s/IP Address:/IP:/g; s/ //g' | tr ',' '\n' | sort | paste -sd, -; }

# DNS:name or IP:address
kind_of() {
    case $1 in
        *[!A-Za-z0-9.:_-]* | '') fail "$1 is no host name and no IP address" ;;
        *:*) say "IP:$1" ;;
        *[!0-9.]*) say "DNS:$1" ;;
        *) say "IP:$1" ;;
    esac
}

# In a folder of its own, which takes its place in one step: an authority is there whole or not at all.
make_authority() {
    authority=$OUT/authority
    if [ -e "$authority/ca.key" ] && [ -e "$authority/ca.crt" ]; then say "kept  $authority"; return; fi
    for file in "$authority"/ca.*; do [ ! -e "$file" ] || fail "$file is but half of an authority: move $authority away"; done
    fresh=$work/authority
    mkdir "$fresh"
    openssl ecparam -name prime256v1 -genkey -noout -out "$fresh/ca.key"
    openssl req -x509 -new -key "$fresh/ca.key" -sha256 -days "$AUTHORITY_DAYS" -subj "/O=fedfm/CN=fedfm authority" \
        -addext basicConstraints=critical,CA:TRUE,pathlen:0 -addext keyUsage=critical,keyCertSign,cRLSign \
        -out "$fresh/ca.crt" 2> "$work/log" || fail "openssl: $(cat "$work/log")"
    chmod 644 "$fresh/ca.crt"
    [ ! -d "$authority" ] || rmdir "$authority"
    mv "$fresh" "$authority"
    say "made  $authority: signs certificates; keep ca.key off line"
}

make_coordinator() {
    [ $# -gt 0 ] || fail "coordinator ADDRESS...: under which names and addresses do sites reach the coordinator?"
    # superlink and localhost: what the containers of the coordinator call it themselves
    wanted=$(for address in superlink localhost "$@"; do kind_of "$address"; done; say IP:127.0.0.1)
    case "$wanted" in *make-certs.sh*) exit 2 ;; esac
    wanted=$(say "$wanted" | sort -u | paste -sd, -)
    folder=$OUT/coordinator
    if [ -e "$folder/server.crt" ]; then
        held=$(names_in "$folder/server.crt")
        [ "$held" = "$wanted" ] || fail "$folder/server.crt holds for $held, not for $wanted: move $folder away to make another"
        say "kept  $folder"
        return
    fi
    [ ! -e "$folder/server.key" ] || fail "$folder/server.key has no server.crt beside it: move it away"
    mkdir -p "$OUT"
    work=$(mktemp -d "$OUT/.new-XXXXXX")  # on the same disk, so that a move is one step
    trap 'rm -rf "$work"' EXIT
    make_authority
    mkdir -p "$folder"
    openssl ecparam -name prime256v1 -genkey -noout -out "$work/server.key"
    openssl req -new -key "$work/server.key" -subj "/O=fedfm/CN=coordinator" -out "$work/request"
    printf '%s\n' "subjectAltName=$wanted" extendedKeyUsage=serverAuth basicConstraints=critical,CA:FALSE \
        keyUsage=critical,digitalSignature authorityKeyIdentifier=keyid > "$work/extensions"
    openssl x509 -req -in "$work/request" -CA "$OUT/authority/ca.crt" -CAkey "$OUT/authority/ca.key" -sha256 -days "$DAYS" \
        -set_serial "0x$(openssl rand -hex 16)" -extfile "$work/extensions" -out "$work/server.crt" 2> "$work/log" \
        || fail "openssl: $(cat "$work/log")"
    cp "$work/server.key" "$folder/server.key"
    cp "$OUT/authority/ca.crt" "$folder/ca.crt"
    cp "$work/server.crt" "$folder/server.crt"
    chmod 644 "$folder/ca.crt" "$folder/server.crt"
    chmod 755 "$folder"
    say "made  $folder: for the coordinator's containers; ca.crt of it goes to every site"
    hand_over "$folder"
}

make_sites() {
    [ $# -gt 0 ] || fail "site NAME...: which sites?"
    for name in "$@"; do
        case $name in [!A-Za-z0-9]* | *[!A-Za-z0-9._-]* | '') fail "$name: a site's name is a word of letters, digits, ., - and _" ;; esac
        folder=$OUT/sites/$name
        if [ -e "$folder/key" ]; then say "kept  $folder"; continue; fi
        mkdir -p "$folder"
        ssh-keygen -q -t ecdsa -b 384 -N '' -C "$name" -f "$folder/key"
        if [ -e "$OUT/authority/ca.crt" ]; then cp "$OUT/authority/ca.crt" "$folder/ca.crt"; chmod 644 "$folder/ca.crt"; fi
        chmod 644 "$folder/key.pub"
        chmod 755 "$folder"
        if [ -d "$OUT/coordinator" ]; then
            mkdir -p "$OUT/coordinator/sites"
            cp "$folder/key.pub" "$OUT/coordinator/sites/$name.pub"
            chmod 755 "$OUT/coordinator/sites"
            chmod 644 "$OUT/coordinator/sites/$name.pub"
        fi
        say "made  $folder: key stays at the site $name and nowhere else; key.pub goes to the coordinator"
        hand_over "$folder"
    done
}

[ $# -gt 0 ] || usage
command=$1
shift
case $command in
    coordinator) make_coordinator "$@" ;;
    site) make_sites "$@" ;;
    *) usage ;;
esac
