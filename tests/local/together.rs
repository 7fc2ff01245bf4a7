//! Many at once: what one does, the others find done or not done, never half.

use super::rig::{HeldImport, Rig, Said, noise, text};
use std::fs;
use std::path::PathBuf;

fn source(rig: &Rig) -> PathBuf {
    let source = rig.make_dir("source");
    fs::write(source.join("file"), noise(1, 1 << 20)).unwrap();
    source
}

fn at_once<T: Send>(count: usize, work: impl Fn(usize) -> T + Sync) -> Vec<T> {
    std::thread::scope(|scope| {
        let work = &work;
        let threads: Vec<_> = (0..count).map(|n| scope.spawn(move || work(n))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

fn twenty_at_once(mut rig: Rig, with_daemon: bool) {
    rig.ok(&["import", "base", text(&source(&rig)), "--size", "64M"]);
    if with_daemon {
        rig.start_daemon(None);
    }
    at_once(20, |n| {
        let (clone, name) = (format!("clone-{n}"), format!("web-{n}"));
        rig.ok(&["clone", "base", &clone]);
        rig.ok(&["list"]);
        rig.ok(&["rename", &clone, &name]);
        match n % 5 {
            0 => drop(rig.ok(&["rm", &name])),
            1 => {
                let mnt = rig.make_dir(&format!("mnt-{n}"));
                rig.ok(&["mount", &name, text(&mnt)]);
                fs::write(mnt.join("own"), noise(n as u64, 50_000)).unwrap();
                rig.ok(&["umount", &name]);
                rig.ok(&["commit", &name]);
            }
            2 => drop(rig.ok(&["gc"])),
            3 => drop(rig.ok(&["publish", "base"])),
            _ => drop(rig.ok(&["check", &name])),
        }
        rig.ok(&["info", "base"]);
    });
    let mut wanted: Vec<String> = (0..20).filter(|n| n % 5 != 0).map(|n| format!("web-{n}")).collect();
    wanted.push("base".into());
    wanted.sort();
    assert_eq!(rig.names(), wanted);
    let tree = rig.ok(&["tree"]);
    assert_eq!(tree.lines().count(), 5, "{tree}");
    if with_daemon {
        rig.stop_daemon();
    }
    for n in [1, 6, 11, 16] {
        let (name, mnt) = (format!("web-{n}"), rig.make_dir("mnt"));
        rig.ok(&["mount", &name, text(&mnt), "--read-only"]);
        assert!(fs::read(mnt.join("own")).unwrap() == noise(n, 50_000), "{name}");
        rig.ok(&["umount", &name]);
    }
    assert_eq!(rig.ok(&["tree"]), tree, "the catalogue of the daemon and that of the files are one");
    rig.assert_sound("twenty at once");
}

#[test]
fn twenty_commands_at_once_are_as_one_after_the_other() {
    twenty_at_once(Rig::new(), false);
}

#[test]
fn twenty_commands_at_once_through_the_daemon_are_as_one_after_the_other() {
    twenty_at_once(Rig::new(), true);
}

fn others_work_while_an_import_runs(mut rig: Rig, with_daemon: bool) {
    rig.ok(&["create", "old", "--size", "64M"]);
    if with_daemon {
        rig.start_daemon(None);
    }
    let mut import = HeldImport::start(&rig, "new", &source(&rig));
    assert_eq!(rig.names(), ["old"]);
    for words in [
        &["info", "old"][..],
        &["tree"],
        &["clone", "old", "copy"],
        &["create", "other", "--size", "64M"],
        &["rename", "copy", "web"],
        &["rm", "other"],
        &["gc"],
        &["publish", "old"],
        &["check", "--all"],
        &["import", "second", text(&rig.path("source")), "--size", "64M"],
    ] {
        rig.ok(words);
        import.assert_runs();
    }
    assert_eq!(rig.names(), ["old", "second", "web"]);
    import.assert_runs();
    let said = import.finish();
    assert_eq!(said.code, Some(0), "{said:?}");
    let mnt = rig.make_dir("mnt");
    rig.ok(&["mount", "new", text(&mnt)]);
    assert!(fs::read(mnt.join("file")).unwrap() == noise(1, 1 << 20));
    rig.ok(&["umount", "new"]);
    if with_daemon {
        rig.stop_daemon();
    }
    rig.assert_sound("beside an import");
}

#[test]
fn everything_else_is_done_while_an_import_runs() {
    others_work_while_an_import_runs(Rig::new(), false);
}

#[test]
fn the_daemon_does_everything_else_while_an_import_runs() {
    others_work_while_an_import_runs(Rig::new(), true);
}

#[test]
fn of_two_imports_of_one_name_the_second_to_end_is_told() {
    let rig = Rig::new();
    // A store, and no object.
    rig.ok(&["create", "none", "--size", "1M", "--fs", "none"]);
    let source = source(&rig);
    let import = HeldImport::start(&rig, "new", &source);
    rig.ok(&["import", "new", text(&source), "--size", "64M"]);
    let said = import.finish();
    assert!(said.code == Some(4) && said.err.contains("\"new\""), "{said:?}");
    rig.assert_sound("two imports");
    // What the other made is nobody's.
    assert_eq!(rig.json(&["gc"])["kept_objects"], 1);
}

#[test]
fn of_many_who_attach_or_rename_one_image_one_does() {
    let rig = Rig::new();
    rig.ok(&["create", "web", "--size", "64M"]);
    let codes = |all: Vec<Said>, others: &[i32]| {
        let codes: Vec<i32> = all.iter().map(|said| said.code.unwrap()).collect();
        assert_eq!(codes.iter().filter(|code| **code == 0).count(), 1, "{all:?}");
        assert!(codes.iter().all(|code| *code == 0 || others.contains(code)), "{all:?}");
    };
    codes(at_once(8, |_| rig.ctl(&["attach", "web"])), &[4]);
    codes(at_once(8, |_| rig.ctl(&["detach", "web"])), &[3]);
    codes(at_once(8, |_| rig.ctl(&["create", "new", "--size", "64M"])), &[4]);
    codes(at_once(8, |n| rig.ctl(&["rename", "web", &format!("web-{n}")])), &[3, 4]);
    codes(at_once(8, |_| rig.ctl(&["rm", "new"])), &[3, 4]);
    assert_eq!(rig.names().len(), 1);
    rig.assert_sound("many at one image");
}

#[test]
fn gc_takes_nothing_that_an_import_or_a_clone_is_about_to_use() {
    let rig = Rig::new();
    let source = source(&rig);
    rig.ok(&["import", "base", text(&source), "--size", "64M"]);
    at_once(6, |n| match n {
        0 | 1 => (0..15).for_each(|_| drop(rig.ok(&["gc"]))),
        2 => (0..4).for_each(|round| drop(rig.ok(&["import", &format!("import-{round}"), text(&source), "--size", "64M"]))),
        // A clone that outlives the image it was made of.
        _ => (0..5).for_each(|round| {
            let (first, second) = (format!("first-{n}-{round}"), format!("second-{n}-{round}"));
            rig.ok(&["create", &first, "--size", "64M"]);
            rig.ok(&["clone", &first, &second]);
            rig.ok(&["rm", &first]);
        }),
    });
    assert_eq!(rig.names().len(), 1 + 4 + 15);
    rig.ok(&["gc"]);
    rig.assert_sound("gc beside import and clone");
}

#[test]
fn two_stores_have_nothing_to_do_with_each_other() {
    let rigs = [Rig::new(), Rig::new()];
    for rig in &rigs {
        rig.ok(&["create", "web", "--size", "64M"]);
        rig.ok(&["mount", "web", text(&rig.make_dir("mnt"))]);
    }
    let [ours, theirs] = &rigs;
    theirs.kill_server();
    ours.ok(&["list"]);
    fs::write(ours.path("mnt").join("file"), "x").unwrap();
    assert!(!theirs.left().is_empty(), "another store's leftovers are left to it");
    theirs.ok(&["list"]);
    theirs.assert_sound("theirs");
    assert_eq!(ours.servers().len(), 1);
    ours.ok(&["umount", "web"]);
    ours.assert_sound("ours");
}
