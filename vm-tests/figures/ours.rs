//! blockbt as its daemon is: one open engine, no program started.

use blockbt::service::{Backend, Bootstrap, Handler, Quiet, Reply, Request, Role, Settings, Stores};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub struct Ours {
    engine: Arc<dyn Handler>,
}

impl Ours {
    pub fn open(root: &Path) -> Ours {
        let settings = Settings {
            root: root.into(),
            listen: ([127, 0, 0, 1], 0).into(),
            dht_listen: None,
            bootstrap: Bootstrap::Nodes(Vec::new()),
            free_margin: None,
        };
        let engine = Stores.open(&settings, Role::Daemon);
        let ours = Ours {
            engine: engine.unwrap_or_else(|error| panic!("open {}: {error}", root.display())),
        };
        ours.tidy();
        ours
    }

    /// What a run that was ended left on the disk.
    fn tidy(&self) {
        let all = self.ask("list", json!({}));
        for image in all["images"].as_array().expect("a list has images") {
            let name = image["name"].as_str().expect("an image has a name");
            let is_the_disks = ["c", "r", "w"]
                .iter()
                .any(|chain| name.strip_prefix(chain).is_some_and(|depth| depth.parse::<usize>().is_ok()));
            if !is_the_disks {
                self.remove(name);
            }
        }
    }

    pub fn stop(&self) {
        self.engine.stop();
    }

    /// The reply to a verb. A figure of one that fails is no figure: this ends the run.
    pub fn ask(&self, verb: &str, arguments: Value) -> Value {
        let text = arguments.to_string();
        let request = Request::from_json(verb, text.as_bytes()).unwrap_or_else(|error| panic!("{verb} {text}: {error}"));
        let reply: Reply = self
            .engine
            .handle(request, &Quiet)
            .unwrap_or_else(|error| panic!("{verb} {text}: {error}"));
        serde_json::to_value(reply).expect("a reply is JSON")
    }

    pub fn clone_of(&self, source: &str, target: &str) {
        self.ask("clone", json!({"source": source, "target": target}));
    }

    pub fn remove(&self, name: &str) {
        self.ask("rm", json!({"name": name}));
    }

    pub fn attach(&self, name: &str, read_only: bool) -> PathBuf {
        let reply = self.ask("attach", json!({"name": name, "read_only": read_only}));
        device(&reply)
    }

    pub fn detach(&self, name: &str) {
        self.ask("detach", json!({"name": name}));
    }

    pub fn mount(&self, name: &str, at: &Path) {
        self.ask("mount", json!({"name": name, "dir": at}));
    }

    pub fn umount(&self, name: &str) {
        self.ask("umount", json!({"name": name}));
    }
}

fn device(reply: &Value) -> PathBuf {
    reply["device"].as_str().expect("attach says where").into()
}
