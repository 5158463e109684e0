//! The recipe for Debian 12, built from its archive and booted without any acceleration. That takes minutes and a network: it
//! runs with `make test-slow` only.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use block::BlockDevice;
use machines::personalise::{Identity, personalise};
use machines::recipe::{BuildOptions, Recipe};
use machines::run::{RunOptions, WaitFor, run};
use machines::store::{Instance, NewInstances, Store};
use machines::{Accel, Settings};
use ops::{Cancel, Control};

/// Far more than it takes.
const LIMIT: Duration = Duration::from_secs(1200);

#[test]
fn debian_12_is_built_and_its_clone_boots_to_a_login_of_its_own() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::at(directory.path().join("store"));
    let control = Control::unwatched();
    let recipe = Recipe::load(Path::new("debian-12")).unwrap();
    let template = store.build(&recipe, &BuildOptions::default(), &control).unwrap();
    assert!(
        template
            .document
            .os
            .as_deref()
            .unwrap()
            .starts_with("Debian GNU/Linux 12")
    );
    let new = NewInstances {
        names: vec!["web-1".parse().unwrap()],
        ..NewInstances::default()
    };
    let own = |instance: &Instance, disk: &Arc<dyn BlockDevice>| {
        personalise(disk, &Identity::new(instance.name.as_str())?, true)
    };
    let instances = store.clone_template(&template, &new, &own, &control).unwrap();
    let machine = store
        .machine(&instances[0], Settings::default(), &control)
        .unwrap();
    let options = RunOptions {
        accel: Accel::Tcg,
        ephemeral: false,
        wait_for: Some(WaitFor::new("web-1 login:", LIMIT, LIMIT).unwrap()),
    };
    let mut said = Vec::new();
    let result = run(&machine, &options, &mut said, &Cancel::new());
    let said = String::from_utf8_lossy(&said);
    result.unwrap_or_else(|error| panic!("{error}: {said}"));
    assert!(said.contains("Debian GNU/Linux 12 web-1"), "{said}");
}
