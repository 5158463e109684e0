//! Directories that sealing empties, and that are links.

use super::*;

/// What is done to a guest that `script` has changed, and what is found in it then.
fn sealed_after(lab: &Lab, script: &str) -> (Vec<String>, Vec<String>) {
    lab.mounted(script);
    let chain = open(&lab.path("disk.raw"), Access::WRITE);
    let changes = seal(&chain.device(), &all(), false, &Control::unwatched()).unwrap();
    let root = Root::find(&chain.device()).unwrap().unwrap();
    let found = lint(&root, &[]).unwrap();
    let done = changes
        .iter()
        .map(|change| format!("{} {} {}", change.operation, change.done, change.path));
    let found = found
        .iter()
        .map(|finding| format!("{} {}", finding.operation.unwrap_or("-"), finding.path));
    (done.collect(), found.collect())
}

#[test]
fn what_is_not_its_own_is_not_emptied_through_a_link() {
    let lab = Lab::new();
    let (done, found) = sealed_after(
        &lab,
        "rm -r var/log tmp var/spool/mail etc/credstore; ln -s /etc var/log; ln -s ../srv/data tmp
         mv var/spool var/gone; ln -s ../usr/spool var/spool; mkdir -p usr/spool/cron usr/spool/mail; echo kept >usr/spool/cron/root
         mkdir usr/keys; echo kept >usr/keys/a; ln -s hop etc/credstore; ln -s /usr/keys etc/hop; echo kept >srv/data/work
         mkdir etc/journal; echo kept >etc/journal/a",
    );
    let left = |operation: &str, path: &str| {
        let line = format!("{operation} left, as a link to elsewhere {path}");
        assert!(done.contains(&line), "{line}: {done:#?}");
        let line = format!("{operation} {path}");
        assert!(found.contains(&line), "{line}: {found:#?}");
    };
    left("logs", "/var/log");
    left("logs", "/var/log/journal");
    left("tmp", "/tmp");
    left("cron-spool", "/var/spool/cron");
    left("service-keys", "/etc/credstore");
    assert_eq!(found.len(), 5, "{found:#?}");
    let kept = "cat etc/ssh/sshd_config srv/data/work usr/spool/cron/root usr/keys/a etc/journal/a; test -s etc/passwd";
    assert_eq!(lab.mounted(kept), "kept\n".repeat(5));
    // Nor by making a template, which says why there is none.
    let machine = lab.machine();
    let publish = |selection: &Selection, leftovers| {
        let new = NewTemplate {
            alias: Some("clean".parse().unwrap()),
            ..NewTemplate::default()
        };
        let control = Control::unwatched();
        lab.store
            .publish(&machine, new, Some((selection, leftovers)), &control)
    };
    let error = publish(&all(), Leftovers::Refused).unwrap_err();
    let told = error.message();
    assert!(
        told.contains("/var/log (") && told.contains("links lead to /etc"),
        "{told}"
    );
    let published = publish(&all(), Leftovers::Kept).unwrap();
    assert_eq!(published.changes.len(), 5, "{:?}", published.changes);
}

#[test]
fn a_link_that_is_not_followed_stays_and_is_found_again() {
    let lab = Lab::new();
    let script = "mkdir data; mv var/log/journal data/journal; ln -s /data/journal var/log/journal";
    let (done, found) = sealed_after(&lab, script);
    let left = "logs left, as a link to elsewhere /var/log/journal".to_owned();
    assert!(done.contains(&left), "{done:#?}");
    assert_eq!(found, ["logs /var/log/journal"]);
    lab.mounted("test -s data/journal/0123/system.journal; test -L var/log/journal");
}

#[test]
fn links_to_temporary_files_and_to_more_of_the_same_are_followed() {
    let lab = Lab::new();
    let (done, found) = sealed_after(
        &lab,
        "rm -r var/run run/log 2>/dev/null || true
         ln -s ../run var/run; echo '<secret 1>' >run/one
         mkdir -p run/log/journal; rm -r var/log/journal; ln -s /run/log/journal var/log/journal; echo '<secret 2>' >run/log/journal/a
         mv var/cache/apt tmp/apt; ln -s ../../tmp/apt var/cache/apt
         rm -rf var/tmp var/mail; ln -s ../tmp var/tmp; echo '<secret 3>' >tmp/three
         mkdir -p var/spool/mail; ln -s spool/mail var/mail; echo '<secret 4>' >var/spool/mail/ada",
    );
    assert!(!done.iter().any(|line| line.contains("left")), "{done:#?}");
    assert_eq!(found, [""; 0]);
    assert_eq!(secrets(&lab.path("disk.raw")), [""; 0]);
}
