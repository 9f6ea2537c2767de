// backward(): runs the tape from a scalar (or from a given gradient) to the leaves.
import { addon } from "../tensor/addon.js";
import { checkTensor } from "../tensor/checks.js";
import { tensor } from "../tensor/create.js";
import { BnbError } from "../tensor/errors.js";
import { run } from "../tensor/run.js";
import { keep, tidy } from "../tensor/scope.js";
import type { Tensor } from "../tensor/tensor.js";
import { GradNode } from "./graph.js";
import { noGrad } from "./no-grad.js";

/**
 * Computes the gradient of `root` with respect to every leaf that requires one and adds it to the leaf's `grad`.
 * The graph is freed on the way; a second backward through it throws ERR_BNB_ARGUMENT, and so does one through an op
 * of which a tensor that its gradient needs was changed in place since: an optimizer's step, a `copyInto`, an `out`, a
 * replayed graph. Nothing has changed then. Nothing waits: gradients are queued like any op.
 *
 * `gradient` [shape and dtype of root] is the gradient of the final result with respect to `root`; without it `root`
 * must have one element.
 */
export function backward(root: Tensor, gradient?: Tensor): void {
  checkTensor("backward", "root", root);
  if (gradient !== undefined) checkTensor("backward", "gradient", gradient);
  if (root.disposed) throw new BnbError("ERR_BNB_DISPOSED", "backward: the tensor was disposed");
  if (!root.requiresGrad) {
    throw new BnbError("ERR_BNB_ARGUMENT", "backward: the tensor must require a gradient; nothing it depends on does");
  }
  const shape = root.shape.join(", ");
  if (!gradient && root.size !== 1) {
    throw new BnbError(
      "ERR_BNB_SHAPE",
      `backward: a tensor without a given gradient must have one element, got [${shape}]`,
    );
  }
  if (gradient && (gradient.shape.join(", ") !== shape || gradient.dtype !== root.dtype)) {
    const came = `${gradient.dtype} [${gradient.shape.join(", ")}]`;
    const code = gradient.dtype === root.dtype ? "ERR_BNB_SHAPE" : "ERR_BNB_DTYPE";
    throw new BnbError(code, `backward: the gradient must be ${root.dtype} [${shape}], got ${came}`);
  }
  noGrad(() => tidy(() => runTape(root, gradient)));
}

function runTape(root: Tensor, gradient: Tensor | undefined): void {
  const start = gradient
    ? gradient.detach()
    : tensor([1], { dtype: root.dtype, shape: root.shape, device: root.device });
  const first = root.node as GradNode | null;
  if (!first) {
    addToLeaf(root, start);
    return;
  }
  const gradients = new Map<GradNode, Tensor>([[first, start]]);
  const nodes = reachable(first);
  // A node whose output was disposed lives by the nodes after it, which are freed before its turn comes.
  for (const node of nodes) node.retain();
  try {
    for (const node of nodes) runNode(node, gradients);
  } finally {
    for (const node of nodes) node.release();
  }
}

function runNode(node: GradNode, gradients: Map<GradNode, Tensor>): void {
  const dy = gradients.get(node);
  gradients.delete(node);
  if (dy && node.apply) {
    const grads = node.apply(dy);
    const owned = new Set<Tensor>([dy]);
    node.edges.forEach((edge, i) => {
      const given = grads[i];
      if (!edge || !given) return;
      // A backward may hand out one tensor twice, or dy itself: every receiver owns a handle of its own.
      const grad = owned.has(given) ? given.detach() : given;
      owned.add(given);
      if (edge instanceof GradNode) gradients.set(edge, sum(gradients.get(edge), grad));
      else addToLeaf(edge, grad);
    });
    dy.dispose();
  }
  node.free();
}

// Nodes between the root and the leaves, latest first.
function reachable(root: GradNode): GradNode[] {
  const seen = new Set<GradNode>([root]);
  for (const node of seen) {
    if (!node.apply) {
      const rule = "backward: the graph was freed by an earlier backward; run the forward pass again";
      throw new BnbError("ERR_BNB_ARGUMENT", `${rule} (at ${node.name})`);
    }
    const changed = node.changed();
    if (changed) {
      const rule = `backward: ${changed} must be as it was in the forward pass, got one changed in place since`;
      throw new BnbError("ERR_BNB_ARGUMENT", `${rule}; run the forward pass again`);
    }
    for (const edge of node.edges) if (edge instanceof GradNode) seen.add(edge);
  }
  return [...seen].sort((a, b) => b.order - a.order);
}

function addToLeaf(leaf: Tensor, grad: Tensor): void {
  if (leaf.disposed) {
    grad.dispose();
    return;
  }
  leaf.grad = keep(sum(leaf.grad ?? undefined, grad));
}

// Both arguments are given up.
function sum(a: Tensor | undefined, b: Tensor): Tensor {
  if (!a) return b;
  const [total] = run(addon.binary, ADD, a, b, 0);
  a.dispose();
  b.dispose();
  return total;
}

/** BinaryOp::add in csrc/kernels/elementwise.h. */
const ADD = 0;
