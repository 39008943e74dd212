/* How the search ranks: Sphinx's own numbers, and then the kind of page. Pages that answer come
   before pages that record. */
var Scorer = {
  score: (result) => {
    const [page, , , , score] = result;
    if (/^(LOG|CHANGELOG|CONTRIBUTING)$/.test(page)) return score - 20;
    if (/^docs\/design$/.test(page)) return score - 15;
    if (/^docs\/reference\/commands$/.test(page)) return score - 3;
    if (/^docs\/reference\//.test(page)) return score - 8;
    if (/^studies\//.test(page)) return score - 8;
    if (/^docs\/(questions|wrong)$/.test(page)) return score + 6;
    return score;
  },
  objNameMatch: 11,
  objPartialMatch: 6,
  objPrio: { 0: 15, 1: 5, 2: -5 },
  objPrioDefault: 0,
  title: 15,
  partialTitle: 7,
  term: 5,
  partialTerm: 2,
};
