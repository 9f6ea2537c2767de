// The factor that float16 losses are multiplied by, so that small gradients do not vanish (Micikevicius et al., 2018):
// halved when a gradient overflows, doubled after many steps without one. The numbers are torch.amp's.

const [FIRST, INTERVAL] = [2 ** 16, 2000];

/** Where a scaler stands. */
export interface LossScalerState {
  scale: number;
  /** Steps since the last overflow or growth. */
  goodSteps: number;
}

export class LossScaler {
  #state: LossScalerState = { scale: FIRST, goodSteps: 0 };

  get scale(): number {
    return this.#state.scale;
  }

  get state(): LossScalerState {
    return { ...this.#state };
  }
  set state(state: LossScalerState) {
    this.#state = { ...state };
  }

  /** To be told of each step whether its gradients were finite. */
  update(wasFinite: boolean): void {
    const { scale, goodSteps } = this.#state;
    if (!wasFinite) this.#state = { scale: scale / 2, goodSteps: 0 };
    else if (goodSteps + 1 === INTERVAL) this.#state = { scale: scale * 2, goodSteps: 0 };
    else this.#state = { scale, goodSteps: goodSteps + 1 };
  }
}
