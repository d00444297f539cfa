//! Routes of a Google Compute Engine network, as flannel's backend gce has them.

mod metadata;
mod names;
mod problem;
mod routes;

use self::{metadata::Instance, routes::Routes};
use crate::{
    exchange::{Answer, Problem, Request},
    plan::{Node, Step, foreign, plan},
};

pub async fn serve(request: &Request, answer: &mut Answer) -> Result<(), Problem> {
    let instance = metadata::instance(request.address).await?;
    let routes = Routes::connect(&instance).await?;
    let found = routes.list().await?;
    let target = instance.path();
    let node = Node {
        network: request.network,
        subnet: request.subnet,
        target: &target,
        take_over: request.take_over,
    };
    for step in plan(&found, &node) {
        let done = take(&routes, &instance, &step).await;
        answer.note(step.done(&instance.network, &instance.name), done);
    }
    Ok(())
}

async fn take(routes: &Routes, instance: &Instance, step: &Step) -> Result<(), Problem> {
    match step {
        Step::Delete(destination) => routes.delete(*destination).await,
        Step::Create(destination) => routes.insert(*destination, instance).await,
        // Routes of this cloud cannot be changed.
        Step::Replace(destination, _) => {
            routes.delete(*destination).await?;
            routes.insert(*destination, instance).await
        }
        Step::Foreign(destination, target) => Err(Problem {
            action: routes::INSERT.to_owned(),
            object: names::route(*destination),
            reason: foreign(target),
            permission: None,
        }),
    }
}
