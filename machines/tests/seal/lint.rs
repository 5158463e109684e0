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
