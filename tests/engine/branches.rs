//! Restores of which a part lies elsewhere: two never take what the other has written for their own.

use super::world::{World, name, one_worker};
use blackstart::entry::Name;
use blackstart::operations::restore::{self, Pick, Request};
use blackstart::target::Branch;
use std::fs;
use std::path::Path;
use std::sync::Arc;

#[test]
fn two_places_of_one_name_do_not_share_what_is_staged_in_a_branch() {
    let world = World::local();
    let tree = world.path("tree");
    fs::create_dir_all(tree.join("part")).unwrap();
    fs::write(tree.join("part/file"), "contents").unwrap();
    world.backup_files(&tree, one_worker()).unwrap();
    let (commit, snapshot) = restore::find(&world.host.open, &name("tree"), &Pick::Latest).unwrap();
    let branches = vec![Branch { at: Name::new("part"), place: world.path("elsewhere") }];
    let restored = |to: &Path, interrupted: bool| {
        let mut request = Request { branches: branches.clone(), ..Request::new(to.to_owned(), 1) };
        if interrupted {
            request.finish = Some(Arc::new(|_| anyhow::bail!("interrupted")));
        }
        let identities = std::slice::from_ref(&world.recovery.identity);
        restore::restore(&world.host.open, identities, &commit, &snapshot, &request)
    };
    let (one, other) = (world.path("a/main"), world.path("b/main"));
    for place in [&one, &other] {
        fs::create_dir(place.parent().unwrap()).unwrap();
    }
    restored(&one, true).unwrap_err();
    let refused = format!("{:#}", restored(&other, false).unwrap_err());
    assert!(refused.contains("is not empty"), "{refused}");
    assert!(fs::read_dir(world.path("b")).unwrap().next().is_none(), "nothing is left of it");
    assert!(restored(&one, false).unwrap().resumed, "what it had written is still there");
    assert_eq!(fs::read(world.path("elsewhere/file")).unwrap(), b"contents");
}
