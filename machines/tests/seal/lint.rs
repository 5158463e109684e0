//! What sealing leaves and a look at the disk finds.

use super::*;

#[test]
fn what_sealing_does_not_take_is_found_where_it_can_do_harm() {
    let lab = Lab::new();
    lab.mounted(
        "mkdir -p root/.aws etc/ssl/private; echo key >root/.aws/credentials; touch root/.netrc
         ssh-keygen -q -t ed25519 -N '' -f home/ann/mine; cp home/ann/mine etc/ssl/private/server.key
         cp /bin/true srv/data/tool; chmod 4755 srv/data/tool; cp /bin/true home/ann/tool; chmod 2755 home/ann/tool",
    );
    let chain = open(&lab.path("disk.raw"), Access::WRITE);
    seal(
        &chain.device(),
        &Selection::default(),
        false,
        &Control::unwatched(),
    )
    .unwrap();
    let root = Root::find(&chain.device()).unwrap().unwrap();
    let found: Vec<String> = lint(&root, &[])
        .unwrap()
        .into_iter()
        .map(|finding| format!("{} {}", finding.path, finding.operation.unwrap_or("-")))
        .collect();
    assert_eq!(
        found,
        [
            "/etc/apt/auth.conf.d/internal.conf service-keys",
            "/etc/corosync/authkey service-keys",
            "/etc/credstore/database.password service-keys",
            "/etc/munge/munge.key service-keys",
            "/etc/ppp/chap-secrets network-keys",
            "/etc/samba/smbpasswd service-keys",
            "/etc/shadow passwords",
            "/etc/ssl/private/server.key ssl-keys",
            "/etc/wireguard/wg0.conf network-keys",
            "/etc/wpa_supplicant/wpa_supplicant-wlan0.conf network-keys",
            "/home/ann/.cargo/credentials.toml credentials",
            "/home/ann/.config/containers/auth.json credentials",
            "/home/ann/.config/rclone credentials",
            "/home/ann/.gnupg/private-keys-v1.d credentials",
            "/home/ann/.local/share/keyrings credentials",
            "/home/ann/.subversion/auth credentials",
            "/home/ann/.vault-token credentials",
            "/home/ann/mine -",
            "/home/ann/tool -",
            "/root/.aws credentials",
            "/root/.netrc credentials",
            "/srv/data/tool -",
            "/var/kerberos/krb5kdc/principal service-keys",
            "/var/lib/snapd/device/private-keys-v1/key service-keys",
            "/var/lib/tor/web/hs_ed25519_secret_key service-keys",
        ]
    );
    let but_for = named(&["passwords".to_owned(), "ssl-keys".to_owned()]).unwrap();
    let left = lint(&root, &but_for).unwrap();
    let keys = left.iter().filter(|finding| finding.reason == "a private key");
    assert_eq!(
        keys.map(|finding| finding.path.as_str()).collect::<Vec<_>>(),
        ["/home/ann/mine"]
    );
    assert!(!left.iter().any(|finding| finding.operation == Some("passwords")));
}

#[test]
fn keys_that_sealing_leaves_are_in_no_template_unless_that_is_said() {
    let lab = Lab::new();
    lab.mounted(
        "mkdir -p etc/letsencrypt/live opt/app var/lib/app
         openssl genpkey -quiet -algorithm ed25519 -out etc/letsencrypt/live/privkey.pem
         ssh-keygen -q -t ed25519 -N '' -f root/.ssh/deploy_key
         (yes note | head -n 3000; cat root/.ssh/deploy_key; echo more) >root/notes.txt
         (head -c 100000 /dev/zero; printf '%s' '-----BEGIN RSA PRIVATE KEY-----') >opt/app/program
         printf '{\"private_key\": \"-----BEGIN PRIVATE KEY-----\\nMIIE' >var/lib/app/account.json",
    );
    let machine = lab.machine();
    let selection = Selection::new(
        &[],
        &["credentials", "network-keys", "service-keys"].map(str::to_owned),
    )
    .unwrap();
    let publish = |leftovers| {
        let new = NewTemplate::default();
        lab.store.publish(
            &machine,
            new,
            Some((&selection, leftovers)),
            &Control::unwatched(),
        )
    };
    let error = publish(Leftovers::Refused).unwrap_err();
    assert_eq!(
        error.to_string(),
        "after sealing, the disk still has /etc/letsencrypt/live/privkey.pem (a private key); /root/.ssh/deploy_key (a private key); \
         /root/notes.txt (a private key); /var/lib/app/account.json (a private key)"
    );
    assert!(error.hint().unwrap().contains("--no-lint"));
    assert_eq!(lab.store.templates().unwrap().found.len(), 1, "nothing is made");
    publish(Leftovers::Kept).unwrap();
    let error = lab
        .store
        .publish(
            &machine,
            NewTemplate::default(),
            Some(sealed(&Selection::default())),
            &Control::unwatched(),
        )
        .unwrap_err();
    let error = error.to_string();
    assert!(
        error.contains("service-keys") && error.contains(" more"),
        "{error}"
    );
}

#[test]
fn keys_without_words_and_compressed_ones_are_found_and_what_is_no_key_is_not() {
    let lab = Lab::new();
    lab.mounted(
        "mkdir -p opt/keys opt/none; cd opt/keys
         openssl genpkey -quiet -algorithm rsa -pkeyopt rsa_keygen_bits:2048 -out ../none/rsa.pem
         openssl rsa -in ../none/rsa.pem -traditional -outform der -out rsa.key
         openssl pkcs8 -topk8 -nocrypt -in ../none/rsa.pem -outform der -out rsa.p8
         openssl pkcs8 -topk8 -passout pass:a -in ../none/rsa.pem -outform der -out encrypted.p8
         openssl ecparam -name prime256v1 -genkey -noout -outform der -out curve.der
         openssl genpkey -quiet -algorithm ed25519 -outform der -out edwards
         openssl dsaparam -out ../none/parameters 1024; openssl gendsa -out ../none/dsa.pem ../none/parameters
         openssl dsa -in ../none/dsa.pem -outform der -out dsa.der; rm ../none/dsa.pem ../none/parameters
         gzip -c rsa.key >rsa.key.gz; gzip -c ../none/rsa.pem >words.gz; tar -cz rsa.p8 -C ../none rsa.pem >both.tar.gz
         cd ../none; openssl rsa -in rsa.pem -pubout -outform der -out public.der
         openssl req -x509 -key rsa.pem -subj /CN=a -outform der -out certificate.der
         openssl rsa -in rsa.pem -RSAPublicKey_out -outform der -out public.key
         (cat ../keys/rsa.key; echo) >longer.key; head -c 900 ../keys/rsa.key >shorter.key; head -c 20 ../keys/words.gz >cut.gz
         head -c 200000000 /dev/zero | gzip >bomb.gz; rm rsa.pem",
    );
    let root = Root::find(&open(&lab.path("disk.raw"), Access::READ).device())
        .unwrap()
        .unwrap();
    let found = lint(&root, &[]).unwrap();
    let found: Vec<_> = found
        .iter()
        .filter_map(|finding| finding.path.strip_prefix("/opt/"))
        .collect();
    assert_eq!(
        found,
        [
            "keys/both.tar.gz",
            "keys/curve.der",
            "keys/dsa.der",
            "keys/edwards",
            "keys/encrypted.p8",
            "keys/rsa.key",
            "keys/rsa.key.gz",
            "keys/rsa.p8",
            "keys/words.gz",
        ]
    );
}

#[test]
fn passwords_of_networks_and_shares_are_found_and_taken_away_when_that_is_asked_for() {
    let lab = Lab::new();
    lab.mounted(
        "mkdir -p etc/netplan etc/smbcredentials etc/systemd/system
         printf 'network: {wifis: {w: {access-points: {a: {password: b}}}}}' >etc/netplan/50-wifi.yaml
         printf 'network: {version: 2}' >etc/netplan/01-all.yaml
         printf '//nas/a /a cifs ro,password=secret 0 0\n//nas/b /b cifs cred=/root/nas 0 0\n//nas/c /c cifs cred=/etc/passwd 0 0\n' >etc/fstab
         printf 'username=a\npassword=b\n' | tee etc/smbcredentials/c >root/nas",
    );
    let names = ["network-keys", "share-passwords"];
    let disk = open(&lab.path("disk.raw"), Access::WRITE).device();
    let of_these = || {
        let found = lint(&Root::find(&disk).unwrap().unwrap(), &[]).unwrap();
        let found = found
            .into_iter()
            .filter(|finding| finding.operation.is_some_and(|name| names.contains(&name)));
        found.map(|finding| finding.path).collect::<Vec<_>>()
    };
    for path in [
        "/etc/netplan/50-wifi.yaml",
        "/etc/fstab",
        "/root/nas",
        "/etc/smbcredentials/c",
    ] {
        assert!(
            of_these().iter().any(|found| found == path),
            "{path}: {:?}",
            of_these()
        );
    }
    assert!(
        !of_these()
            .iter()
            .any(|path| path.contains("01-all") || path == "/etc/passwd")
    );
    let selection = Selection::new(&names.map(str::to_owned), &[]).unwrap();
    seal(&disk, &selection, false, &Control::unwatched()).unwrap();
    assert!(of_these().is_empty(), "{:?}", of_these());
    let root = Root::find(&disk).unwrap().unwrap();
    let fstab = root.read("/etc/fstab", 1000).unwrap();
    assert!(fstab.starts_with(b"//nas/a /a cifs ro 0 0\n//nas/b /b cifs cred=/root/nas"));
}

#[test]
fn texts_in_other_encodings_are_looked_into_and_their_other_bytes_stay() {
    let lab = Lab::new();
    lab.mounted(
        "mkdir -p etc/NetworkManager/system-connections
         printf 'mu:x:2000:2000:M\\374ller:/srv/m\\374:/bin/sh\\n' >>etc/passwd
         printf 'mu:$6$secret:1:M\\374:::::\\n' >>etc/shadow
         mkdir \"srv/$(printf 'm\\374')\"; echo words >\"srv/$(printf 'm\\374')/.bash_history\"
         printf '# M\\374ller\\n[wifi-security]\\npsk=secret\\n' >etc/NetworkManager/system-connections/w.nmconnection
         chmod 600 etc/NetworkManager/system-connections/w.nmconnection",
    );
    let disk = open(&lab.path("disk.raw"), Access::WRITE).device();
    let selection = Selection::new(
        &["shell-history", "passwords", "net-secrets"].map(str::to_owned),
        &[],
    )
    .unwrap();
    seal(&disk, &selection, false, &Control::unwatched()).unwrap();
    let left = lab.mounted(
        "test ! -e \"srv/$(printf 'm\\374')/.bash_history\"
         (tail -n 1 etc/shadow; cat etc/NetworkManager/system-connections/w.nmconnection) | iconv -f latin1 -t utf8",
    );
    assert_eq!(left, "mu:*:1:M\u{fc}:::::\n# M\u{fc}ller\n[wifi-security]\n");
}
