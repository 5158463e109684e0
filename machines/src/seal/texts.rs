//! What texts in a guest become, without what is one machine's own or private.

use std::cell::Cell;
use std::ops::Deref;

/// A text of which any byte may be changed, and the others stay as they are. Where it is not UTF-8, each byte is the character of its
/// number: what is looked for is ASCII in all encodings that a guest may have.
#[derive(Debug, Default)]
pub(super) struct Text {
    text: String,
    is_bytes: bool,
}

impl Text {
    pub(super) fn new(bytes: Vec<u8>) -> Self {
        match String::from_utf8(bytes) {
            Ok(text) => Self {
                text,
                is_bytes: false,
            },
            Err(error) => Self {
                text: error.as_bytes().iter().copied().map(char::from).collect(),
                is_bytes: true,
            },
        }
    }

    /// The bytes of a part of it, or of what has become of it.
    pub(super) fn bytes_of(&self, part: &str) -> Vec<u8> {
        if self.is_bytes {
            part.chars().map(|c| u8::try_from(c).unwrap_or(b'?')).collect()
        } else {
            part.as_bytes().to_vec()
        }
    }
}

impl Deref for Text {
    type Target = str;

    fn deref(&self) -> &str {
        &self.text
    }
}

/// The text without the lines that are to go.
fn without<'t>(text: &'t str, goes: impl Fn(&'t str) -> bool) -> Option<String> {
    let lines = text.split_inclusive('\n');
    let kept: String = lines.filter(|line| !goes(line.trim())).collect();
    (kept != text).then_some(kept)
}

/// The key of a line `key=value`.
fn key(line: &str) -> &str {
    line.split('=').next().unwrap_or_default().trim()
}

pub(super) fn without_hwaddr(text: &str) -> Option<String> {
    without(text, |line| matches!(key(line), "HWADDR" | "MACADDR"))
}

pub(super) fn without_mac_address(text: &str) -> Option<String> {
    without(text, |line| {
        line.contains('=')
            && matches!(
                key(line),
                "mac-address" | "cloned-mac-address" | "permanent-mac-address"
            )
    })
}

/// nm-settings-keyfile(5): what it calls secrets, and all lines of a VPN's section of them.
pub(super) fn without_network_secrets(text: &str) -> Option<String> {
    let keys = [
        "psk",
        "password",
        "password-raw",
        "private-key-password",
        "phase2-private-key-password",
        "ca-cert-password",
        "client-cert-password",
        "phase2-ca-cert-password",
        "phase2-client-cert-password",
        "pin",
        "leap-password",
        "mka-cak",
    ];
    let section = Cell::new("");
    without(text, |line| {
        if line.starts_with('[') {
            section.set(line);
        }
        if !line.contains('=') {
            return false;
        }
        let key = key(line);
        let is_in = |name| section.get().starts_with(name);
        is_in("[vpn-secrets]")
            || keys.contains(&key)
            || key.starts_with("wep-key")
            // Elsewhere they are names of files.
            || (is_in("[wireguard") && ["private-key", "preshared-key"].contains(&key))
    })
}

/// netplan-yaml(5): passwords of access points, of 802.1X and of modems, and keys of `WireGuard`.
pub(super) fn has_netplan_secret(text: &str) -> bool {
    let keys = ["password", "client-key-password", "pin", "private", "shared"];
    let lines = text.lines().filter(|line| !line.trim_start().starts_with('#'));
    lines
        .flat_map(|line| keys.map(|key| (line, key)))
        .any(|(line, key)| {
            let mut places = line
                .match_indices(key)
                .map(|(at, _)| (&line[..at], &line[at + key.len()..]));
            places.any(|(before, after)| {
                let is_key = !before.ends_with(|c: char| c.is_alphanumeric() || c == '-' || c == '_');
                is_key && has_value(after)
            })
        })
}

/// Whether what follows a key in YAML is a value that is no file's name; a line that ends there goes on in the next one.
fn has_value(after: &str) -> bool {
    let Some(value) = after
        .trim_start_matches(['"', '\''])
        .trim_start()
        .strip_prefix(':')
    else {
        return false;
    };
    let first = value.split([',', '}', '#']).next().unwrap_or_default();
    let first = first.trim().trim_matches(['"', '\'']);
    value.trim().is_empty() || !(["", "null", "~"].contains(&first) || first.starts_with('/'))
}

/// Debian's open-iscsi makes another name where the file asks for that, and does not start without the file.
pub(super) fn with_generated_initiator(text: &str) -> Option<String> {
    let is_debian = |line: &str| {
        line.trim_start()
            .starts_with("InitiatorName=iqn.1993-08.org.debian:")
    };
    text.lines()
        .any(is_debian)
        .then(|| "GenerateName=yes\n".to_owned())
}

/// Others make one where there is no file.
pub(super) fn names_initiator(text: &str) -> bool {
    with_generated_initiator(text).is_none()
        && text
            .lines()
            .any(|line| line.trim_start().starts_with("InitiatorName="))
}

/// The line of hosts(5) that Debian's installer makes for the machine's own name.
pub(super) fn without_own_name(text: &str) -> Option<String> {
    without(text, |line| line.split_whitespace().next() == Some("127.0.1.1"))
}

/// shadow(5) with "*" for every password: none fits, and who has a key may still log in.
pub(super) fn without_passwords(text: &str) -> Option<String> {
    let lines = text.split_inclusive('\n').map(|line| {
        let mut fields: Vec<&str> = line.split(':').collect();
        match fields.get_mut(1) {
            Some(password) if is_password(password) => *password = "*",
            _ => return line.to_owned(),
        }
        fields.join(":")
    });
    let locked: String = lines.collect();
    (locked != text).then_some(locked)
}

/// Whether some password, or none at all, lets its user in.
fn is_password(field: &str) -> bool {
    !field.starts_with(['!', '*'])
}

/// A network device's or a network's own key: systemd.netdev(5), `wpa_supplicant.conf(5)`, `ConnMan`.
pub(super) fn has_network_key(text: &str) -> bool {
    let keys = [
        "PrivateKey",
        "PresharedKey",
        "psk",
        "password",
        "private_key_passwd",
        "Passphrase",
    ];
    text.lines().map(str::trim).any(|line| {
        line.split_once('=')
            .is_some_and(|(key, value)| keys.contains(&key.trim()) && !value.trim().is_empty())
    })
}

/// Whether a file such as chap-secrets or ipsec.secrets says anything: packages bring it along with comments alone, or with the name of another.
pub(super) fn has_secret_lines(text: &str) -> bool {
    let lines = text.lines().map(str::trim);
    let mut lines = lines.filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines.any(|line| !line.starts_with("include"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_private_is_edited_out() {
        let shadow = "root:$y$j9T$abc:19700:0:99999:7:::\nbin:*:1::::::\na:!$6$x:1::::::\nopen::1::::::\n";
        let locked = "root:*:19700:0:99999:7:::\nbin:*:1::::::\na:!$6$x:1::::::\nopen:*:1::::::\n";
        assert_eq!(without_passwords(shadow).as_deref(), Some(locked));
        assert_eq!(without_passwords(locked), None);
        let connection = "[wifi]\nssid=home\n[wifi-security]\nkey-mgmt=wpa-psk\npsk=secret\n[ethernet]\nmac-address=52:54:00:00:00:01\n";
        let tunnel = "[wireguard]\nprivate-key=YWJj=\n[wireguard-peer.YWJj=]\npreshared-key=YWJj=\nendpoint=a:1\n\
                      [vpn-secrets]\nxauth=secret\n[802-1x]\nprivate-key=/etc/a.key\npassword-raw=YWJj\n";
        assert_eq!(
            without_network_secrets(tunnel).as_deref(),
            Some(
                "[wireguard]\n[wireguard-peer.YWJj=]\nendpoint=a:1\n[vpn-secrets]\n[802-1x]\nprivate-key=/etc/a.key\n"
            )
        );
        let open = without_network_secrets(connection).unwrap();
        assert!(!open.contains("secret") && open.contains("ssid=home") && open.contains("mac-address"));
        assert!(!without_mac_address(&open).unwrap().contains("52:54"));
        assert_eq!(
            without_own_name("127.0.0.1 localhost\n127.0.1.1 old\n::1 localhost").as_deref(),
            Some("127.0.0.1 localhost\n::1 localhost")
        );
        let debian = "## DO NOT EDIT\nInitiatorName=iqn.1993-08.org.debian:01:abc\n";
        let made_anew = with_generated_initiator(debian).unwrap();
        assert!(made_anew == "GenerateName=yes\n" && !names_initiator(debian));
        assert!(with_generated_initiator(&made_anew).is_none() && !names_initiator(&made_anew));
        let redhat = "InitiatorName=iqn.1994-05.com.redhat:abc\n";
        assert!(with_generated_initiator(redhat).is_none() && names_initiator(redhat));
        assert_eq!(
            without_hwaddr("DEVICE=eth0\nHWADDR=\"x\"\n").as_deref(),
            Some("DEVICE=eth0\n")
        );
    }

    #[test]
    fn secrets_of_networks_are_told_from_what_packages_bring_along() {
        for text in [
            "[NetDev]\nKind=wireguard\n[WireGuard]\nPrivateKey=abc=\n",
            "network={\n\tssid=\"home\"\n\tpsk=\"secret\"\n}\n",
            "[service_home]\nPassphrase=secret\n",
        ] {
            assert!(has_network_key(text), "{text}");
        }
        for text in ["", "[NetDev]\nKind=bridge\n", "psk=\n", "# psk=secret\n"] {
            assert!(!has_network_key(text), "{text}");
        }
        for text in [
            "      access-points:\n        home:\n          password: secret\n",
            "access-points: {\"home\": {\"password\": \"secret\"}}\n",
            "access-points: {home: {password: 'a/b'}}\n",
            "auth:\n  password:\n    secret\n",
            "tunnels: {wg0: {keys: {private: YWJj}}}\n",
        ] {
            assert!(has_netplan_secret(text), "{text}");
        }
        for text in [
            "network: {version: 2, ethernets: {eth0: {dhcp4: true}}}\n",
            "# password: secret\n",
            "password: \"\"\n",
            "a-password: x\npasswords: y\n",
            "keys: {private: /etc/wireguard/key}\n",
        ] {
            assert!(!has_netplan_secret(text), "{text}");
        }
        assert!(has_secret_lines("# Secrets\n\nme * secret *\n"));
        assert!(!has_secret_lines(
            "# Secrets\n\ninclude /var/lib/strongswan/ipsec.secrets.inc\n"
        ));
    }
}
