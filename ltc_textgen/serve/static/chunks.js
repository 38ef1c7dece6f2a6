// From the events of a stream to tokens with their text and numbers.
//
// The text of a token reaches from its offset to that of the next one, so each token is known when the next arrives. The
// time constants that come with a token are those after the token before it was read.

export class Chunks {
  constructor() {
    this.text = "";
    this.pending = [];
    this.count = 0;
  }

  /** Tokens {text, facts} that an event completes; `end` completes all. */
  push(choice, end = false) {
    this.text += choice.text;
    const { logprobs } = choice, tau = choice.ltc?.tau;
    logprobs?.tokens.forEach((token, index) => {
      const before = this.pending.at(-1);
      if (before && tau) before.facts.tau = { ...pick(tau.neurons, index), median: tau.median.map((layer) => layer[index]) };
      const top = logprobs.top_logprobs[index] ?? {};
      const facts = { token, logprob: logprobs.token_logprobs[index], top: Object.entries(top).sort((a, b) => b[1] - a[1]), number: this.count };
      this.pending.push({ offset: logprobs.text_offset[index], facts });
      this.count += 1;
    });
    if (!logprobs) return choice.text ? [{ text: choice.text, facts: {} }] : [];
    const done = [];
    while (this.pending.length > (end ? 0 : 1)) {
      const stop = this.pending[1]?.offset ?? this.text.length;
      if (stop > this.text.length && !end) break;
      const { offset, facts } = this.pending.shift();
      done.push({ text: this.text.slice(offset, stop), facts });
    }
    return done.filter((token) => token.text);
  }
}

function pick(neurons, index) {
  return Object.fromEntries(Object.entries(neurons).map(([name, codes]) => [name, codes[index]]));
}
